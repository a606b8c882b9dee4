"""Pictures from files and URLs."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import __version__
from ..errors import InputError, RepositoryError

if TYPE_CHECKING:
    from PIL import Image

_TIMEOUT = 20.0  # seconds without a byte


def load_image(
    image: str | os.PathLike | Image.Image,
    convert_method: Callable[[Image.Image], Image.Image] | None = None,
    *,
    timeout: float = _TIMEOUT,
) -> Image.Image:
    """A picture from a path, an http(s) URL or a PIL image: turned upright as its EXIF data say, and as RGB.

    `convert_method` replaces the conversion to RGB; `timeout` is in seconds. Raises `RepositoryError` where nothing can
    be fetched or read, and `InputError` for any other kind of argument.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not isinstance(image, str | os.PathLike | Image.Image):
        raise InputError(f"image is of type {type(image).__name__}; a path, a URL or a PIL image is needed")
    if isinstance(image, Image.Image):
        opened = image
    else:
        shown = os.fspath(image)
        try:
            opened = Image.open(_source(shown, timeout))
            opened.load()  # a truncated file is found here, not in some later call
        except UnidentifiedImageError:
            raise RepositoryError(f"{shown!r} is not a picture in any format that can be read") from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            if isinstance(error, RepositoryError):
                raise
            raise RepositoryError(f"{shown!r} cannot be read as a picture ({error})") from error
    upright = ImageOps.exif_transpose(opened)
    return upright.convert("RGB") if convert_method is None else convert_method(upright)


def _source(address: str, timeout: float) -> Any:
    if address.startswith(("http://", "https://")):
        return io.BytesIO(_fetch(address, timeout))
    if not os.path.isfile(address):
        raise RepositoryError(f"there is no file {address!r} (a URL starts with http:// or https://)")
    return address


def _fetch(url: str, timeout: float) -> bytes:
    import http.client
    import urllib.error
    import urllib.request

    # Some servers turn Python's own default away.
    request = urllib.request.Request(url, headers={"User-Agent": f"safelight/{__version__}"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.read()
    except urllib.error.HTTPError as error:
        raise RepositoryError(f"{url} answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:  # no connection, time-out, answer cut short
        reason = getattr(error, "reason", error)
        raise RepositoryError(f"{url} cannot be fetched ({reason})") from error
