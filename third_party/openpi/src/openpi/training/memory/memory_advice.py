"""Suggest what would make a config fit into the memory.

Each measure comes with its own estimate.
"""

from collections.abc import Callable, Iterator
import dataclasses

import jax

from openpi.training.configs.train_config import TrainConfig

_GIB = 2**30


def advise(config: TrainConfig, available: int, estimate: Callable[[TrainConfig], float]) -> str:
    """Say what would fit, as a sentence.

    If no single measure fits, name all of them with their sizes.

    Args:
        config: A config that is too large.
        available: The memory that there is, bytes.
        estimate: Returns what a config needs, bytes.
    """
    sized = [(words, estimate(changed)) for words, changed in measures(config)]
    fitting = [f"{words} ({size / _GIB:.1f} GiB)" for words, size in sized if size <= available]
    if fitting:
        return f"It would fit with {', or '.join(fitting)}"
    listed = ", ".join(f"{words} ({size / _GIB:.1f} GiB)" for words, size in sorted(sized, key=lambda pair: pair[1]))
    return (
        f"No single measure is enough: {listed}. Use a larger accelerator, several with --fsdp-devices, or try "
        "things out with debug_realman, which fits on any CPU"
    )


def measures(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Yield what could make a config smaller.

    Each measure is given as words for the message and as the changed config.
    """
    devices = jax.device_count()
    if lora := _lora_config(config):
        yield (
            f"the config {lora.name}",
            dataclasses.replace(lora, batch_size=config.batch_size, fsdp_devices=config.fsdp_devices),
        )
    if devices > config.fsdp_devices:
        yield f"--fsdp-devices {devices}", dataclasses.replace(config, fsdp_devices=devices)
    per_device = config.batch_size // devices
    if config.grad_accumulation < per_device:
        yield f"--grad-accumulation {per_device}", dataclasses.replace(config, grad_accumulation=per_device)
    if per_device > 1:
        yield f"--batch-size {devices}", dataclasses.replace(config, batch_size=devices, grad_accumulation=1)
    if config.remat != "full":
        yield "--remat full", dataclasses.replace(config, remat="full")
    if not config.freeze_image_tower:
        yield "--freeze-image-tower", dataclasses.replace(config, freeze_image_tower=True)
    if config.ema_decay is not None:
        yield "--ema-decay None", dataclasses.replace(config, ema_decay=None)


def _lora_config(config: TrainConfig) -> TrainConfig | None:
    """Return the registered config of the same name with adapters."""
    from openpi.training import config as registry  # not at the top, because it imports users of this module

    return registry.all_configs().get(f"{config.name}_lora")
