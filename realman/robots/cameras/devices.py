"""Recognize a camera device of Linux.

Its number may pass to another camera.
"""

from pathlib import Path

_DEV = Path("/dev")
_VIDEO_DEVICES = Path("/sys/class/video4linux")


def identify(device: int | str, video_devices: Path = _VIDEO_DEVICES) -> str | None:
    """Return what the system knows about the camera behind a device file.

    It is the name with the serial number, or with the USB port if the camera has none.

    Args:
        device: What `cv2.VideoCapture` opens.
        video_devices: Where the system describes its cameras.

    Returns:
        None for streams and files, and on systems that describe nothing.
    """
    # Links such as /dev/v4l/by-id/... lead to a numbered device file.
    file = _DEV / f"video{device}" if isinstance(device, int) else Path(device).resolve()
    described = video_devices / file.name
    try:
        if not isinstance(device, int) and file.parent != _DEV:
            return None
        name, usb = (described / "name").read_text().strip(), (described / "device").resolve().parent
        serial = usb / "serial"
        return f"{name}, serial number {serial.read_text().strip()}" if serial.is_file() else f"{name} at {usb.name}"
    except (OSError, ValueError):
        return None
