"""The machines where a command has its jobs done: devices of this machine, or a Ray cluster."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from regrow.errors import ConfigError, unknown

if TYPE_CHECKING:
    from regrow.run.executors import Platform


@dataclass(frozen=True, kw_only=True)
class Machines:
    """The answer to ``--device``, ``--devices``, ``--on`` and ``--address``."""

    device: str = "cpu"
    devices: str | None = None
    on: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if self.devices not in (None, "all"):
            raise ConfigError(
                "--devices all is every GPU; name several with --device. "
                f"Got {str(self.devices)!r}."
            )
        if self.on not in (None, "ray"):
            raise ConfigError(unknown("platform", str(self.on), ["ray"]))
        if self.address is not None and self.on is None:
            raise ConfigError("--address is of a Ray cluster: give --on ray too.")
        if self.on is not None and (self.devices or self.device not in ("cpu", "cuda")):
            raise ConfigError(
                "--device is cpu or cuda with --on ray, which hands out GPUs. "
                f"Got {self.devices or self.device}."
            )

    @property
    def first(self) -> str:
        """The device that stands for all of them, before PyTorch is imported."""
        return "cuda:0" if self.devices else self.device.partition(",")[0].strip()

    def checked(self) -> "tuple[tuple[str, ...], Platform | None]":
        """Return the devices, each tried out here, or what does the jobs elsewhere."""
        from regrow.run import check_device, devices_of

        if self.on is not None:
            from regrow.run.on_ray import on_ray

            return (self.device,), on_ray(self.address)
        devices = devices_of(self.device, every=self.devices is not None)
        for name in devices:
            check_device(name)
        return devices, None
