"""What would make a config fit into the memory there is, each measure with its own estimate."""

from collections.abc import Callable, Iterator
import dataclasses

import jax

from openpi.training.configs.train_config import TrainConfig

_GIB = 2**30


def advise(config: TrainConfig, available: int, estimate: Callable[[TrainConfig], float]) -> str:
    """Say what would fit; if no single measure does, all of them, and what they come to.

    Args:
        config: Too large.
        available: Memory there is, bytes.
        estimate: What a config needs, bytes.
    """
    sized = [(words, estimate(changed)) for words, changed in measures(config)]
    fitting = [f"{words} ({size / _GIB:.1f} GiB)" for words, size in sized if size <= available]
    if fitting:
        return f"it would fit with {', or '.join(fitting)}"
    listed = ", ".join(f"{words} ({size / _GIB:.1f} GiB)" for words, size in sorted(sized, key=lambda pair: pair[1]))
    return (
        f"no measure alone is enough here: {listed}; use a larger accelerator, several with --fsdp-devices, or try "
        "things out with debug_realman, which any CPU holds"
    )


def measures(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Yield what could be done about a config that is too large: words, and the changed config."""
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
    from openpi.training import config as registry  # which imports the modules that this one serves

    return registry.all_configs().get(f"{config.name}_lora")
