"""Published weights: read from this machine's caches, or downloaded after a log line."""

import logging
from collections.abc import Sequence
from pathlib import Path

from dml.errors import InvalidSetting, MissingArtifact, did_you_mean, without_password

logger = logging.getLogger(__name__)

_ANSWER_WITHIN_S = 5.0
_TIMM_FILES = ("model.safetensors", "pytorch_model.bin")


def hub_file(repository: str, names: Sequence[str], *, what: str, give: str) -> Path:
    """A file of a Hugging Face repository: from the hub's cache on this machine, else fetched into it.

    Args:
        repository: OWNER/NAME.
        names: of the file; the first that there is.
        what: it holds, for messages.
        give: how a user can give it instead, for messages.

    Raises:
        MissingArtifact: it is neither here nor can be fetched; says from where it would come.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return Path(cached)
    for name in names:
        url = hf_hub_url(repository, name)
        try:
            size = get_hf_file_metadata(url, timeout=_ANSWER_WITHIN_S).size
            _announce(what, url, size)
            return Path(hf_hub_download(repository, name, etag_timeout=_ANSWER_WITHIN_S))
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's client raises its own, its transport's and the system's
            raise _unreachable(what, url, give, HF_HUB_CACHE, error) from error
    raise MissingArtifact(
        f"{what} must be one of {list(names)} in the repository {repository}; it has none. {give}"
    )


def web_file(url: str, *, what: str, give: str) -> Path:
    """A file from an address: from torch's cache here, else fetched into it; raises as `hub_file`."""
    import torch

    cached = Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])
    if cached.exists():
        return cached
    _announce(what, url, None)
    cached.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(cached), progress=False)
    except OSError as error:
        raise _unreachable(what, url, give, str(cached.parent), error) from error
    return cached


def timm_weights(name: str) -> Path:
    """The weights file of a timm network.

    Args:
        name: as timm has it, such as `resnet50` (its default weights) or `resnet50.a1_in1k`.

    Raises:
        InvalidSetting: timm has no such network, or no weights of it.
        MissingArtifact: they are neither here nor can be fetched.
    """
    import timm

    require_timm(name)
    config = timm.get_pretrained_cfg(name)
    what, give = f"The weights of timm:{name}", "Fetch it elsewhere and give it: --weights FILE."
    if config is None or not (config.hf_hub_id or config.url):
        raise InvalidSetting(f"timm must publish weights of {name!r} to start from; it has none. {give}")
    if not config.hf_hub_id:
        return web_file(config.url, what=what, give=give)
    named = config.hf_hub_filename
    names = _TIMM_FILES if named is None else (named.rpartition(".")[0] + ".safetensors", named)
    return hub_file(config.hf_hub_id, names, what=what, give=give)


def require_timm(name: str) -> None:
    """Raise InvalidSetting where timm has no network, or no weights, of a name."""
    import timm

    network, _, tag = name.partition(".")
    if not timm.is_model(network):
        raise InvalidSetting(
            f"timm must have the network; it has no {network!r}.{did_you_mean(network, timm.list_models())}"
        )
    tags = [entry.partition(".")[2] for entry in timm.list_pretrained(f"{network}.*")]
    if tag and tag not in tags:
        raise InvalidSetting(
            f"timm must have the weights; {network} has no {tag!r}, but {', '.join(tags) or 'none'}."
            f"{did_you_mean(tag, tags)}"
        )


def _announce(what: str, url: str, size_bytes: int | None) -> None:
    size = "" if size_bytes is None else f", {size_bytes / 1e6:.0f} MB,"
    logger.info("%s: fetching%s from %s", what, size, url)


def _unreachable(what: str, url: str, give: str, cache: str, error: Exception) -> MissingArtifact:
    first_line = without_password(str(error).strip().partition("\n")[0]) or type(error).__name__
    return MissingArtifact(
        f"{what} must be on this machine or be fetched; {url} cannot be: {first_line.rstrip('.')}. {give} Or "
        f"bring the cache of a machine that reaches it: {cache}."
    )
