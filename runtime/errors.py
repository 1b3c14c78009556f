"""The errors that users meet. One root, typed by whose fault it is.

Each message names the thing, its value and the limit; the hint is a command or a setting.

    VlmError                     exit code 1 (our own bug when raised bare)
    ├── UsageError               2    a call or a flag that cannot be
    ├── ConfigError              3    configuration, manifest-independent settings
    ├── BundleError              4    the bundle on disk: missing, damaged, unknown schema
    ├── EngineError              4    an engine that cannot run or failed while running
    │   ├── BusyError                 its queue is full
    │   └── DeviceLostError           its device is gone for this process
    ├── ExportError              4    a checkpoint that cannot be exported
    ├── InputError               2    a prompt, an image, an argument of a request
    │   ├── ImageError
    │   └── PromptError
    ├── SourceError              5    a camera or a video
    ├── MemoryLimitError         6    not enough memory, said before it is taken
    ├── NetworkError             7
    ├── OutputError              8    a disk or a sink
    ├── DeadlineError            124
    └── ClosedError              2    use after close
"""

from __future__ import annotations


class VlmError(Exception):
    """Root of every error raised on purpose by this project.

    ``message`` says what is wrong with names, values and limits; ``hint`` says what to do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} (hint: {self.hint})"


class UsageError(VlmError):
    """A call or a flag that contradicts itself or the documentation."""

    exit_code = 2


class InputError(VlmError):
    """What a request brought along cannot be used."""

    exit_code = 2


class ImageError(InputError):
    """An image that cannot be decoded, or whose type, shape or range is not accepted."""


class PromptError(InputError):
    """A prompt that does not fit: too long, wrong number of images, wrong roles."""


class ClosedError(VlmError):
    """A session, source or engine was used after it was closed."""

    exit_code = 2


class ConfigError(VlmError):
    """A setting or a configuration file with a wrong value."""

    exit_code = 3


class BundleError(VlmError):
    """A bundle that is missing, incomplete, damaged or of an unknown schema."""

    exit_code = 4


class EngineError(VlmError):
    """An engine that cannot run here, or failed while running."""

    exit_code = 4


class BusyError(EngineError):
    """A session whose queue is full; the request was not taken and may be made again later."""


class DeviceLostError(EngineError):
    """The device of an engine is lost: whatever is asked of it in this process fails; start a new one."""


class ExportError(VlmError):
    """A checkpoint that cannot be read or turned into a bundle."""

    exit_code = 4


class SourceError(VlmError):
    """A camera, a video or a picture source that cannot deliver frames."""

    exit_code = 5


class MemoryLimitError(VlmError):
    """The memory budget does not hold; said before anything is allocated."""

    exit_code = 6


class NetworkError(VlmError):
    """A network peer that does not answer or refuses."""

    exit_code = 7


class OutputError(VlmError):
    """A disk or another output that does not take what is written."""

    exit_code = 8


class DeadlineError(VlmError):
    """A deadline passed before the first token."""

    exit_code = 124
