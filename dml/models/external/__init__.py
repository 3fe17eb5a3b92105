"""External networks as packages: one file and one class per kind of address, looked up by the file's name.

timm:NAME                        a network of timm, with the weights that timm publishes
torchvision:NAME                 a network of torchvision
safetensors:FILE@timm:NAME       weights in a file, and the network they belong to
"""

from dml.models.external.base import External, ImportConfig, Options, Source
from dml.models.external.importing import import_embedder, preview, read_embedder

__all__ = ["External", "ImportConfig", "Options", "Source", "import_embedder", "preview", "read_embedder"]
