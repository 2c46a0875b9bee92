"""Backbones against the full networks they are cut from."""

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from mpdiffuser.errors import InputError
from vision.backbones import DEFAULT, Backbone, _packaged, load_pretrained

pytestmark = pytest.mark.slow  # builds many networks


def frames(count: int = 2, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def images(batch: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    scaled = batch.permute(0, 3, 1, 2).float() / 255
    return torch.stack([(scaled[:, c] - mean[c]) / std[c] for c in range(3)], 1)


def pooled(maps: torch.Tensor, pool: int) -> torch.Tensor:
    """Means of equal blocks, channel by channel."""
    side = maps.shape[-1] // pool
    return maps.unfold(2, side, side).unfold(3, side, side).mean((-1, -2)).flatten(1)


@pytest.mark.parametrize(("stride", "pool", "stage"), [(16, 4, 3), (8, 4, 2), (32, 2, 4)])
def test_the_default_is_a_stage_of_the_full_efficientnet(stride: int, pool: int, stage: int) -> None:
    backbone = Backbone(stride=stride, pool=pool).eval()
    load_pretrained(backbone, DEFAULT)
    full = timm.create_model("tf_efficientnet_lite0").eval()
    full.load_state_dict(_packaged())
    batch = frames()
    with torch.no_grad():
        found = backbone(batch)
        stages = full.forward_intermediates(
            images(batch, full.pretrained_cfg["mean"], full.pretrained_cfg["std"]), intermediates_only=True
        )
    assert found.shape == (2, backbone.dim)
    torch.testing.assert_close(found, pooled(stages[stage], pool), rtol=1e-4, atol=1e-4)


def test_the_packaged_weights_are_trained_ones() -> None:
    """The whole network tells a picture of a gradient from noise the same way after a small shift."""
    full = timm.create_model("tf_efficientnet_lite0").eval()
    full.load_state_dict(_packaged())
    ramp = torch.linspace(0, 255, 224).byte()
    picture = torch.stack(
        [ramp[:, None].expand(224, 224), ramp[None].expand(224, 224), 255 - ramp[:, None].expand(224, 224)], -1
    )
    noise = frames(1, 224)[0]
    batch = torch.stack([picture, picture.roll(4, 0), noise, noise.roll(4, 0)])
    with torch.no_grad():
        classes = full(images(batch, full.pretrained_cfg["mean"], full.pretrained_cfg["std"])).softmax(-1)
    apart = lambda i, j: (classes[i] - classes[j]).abs().sum()  # noqa: E731
    assert apart(0, 2) > 2 * max(apart(0, 1), apart(2, 3))
    assert classes.max(-1).values.min() > 10 / 1000  # far from uniform


@pytest.mark.parametrize(("name", "stride"), [("resnet18", 16), ("resnet18", 8), ("resnet50", 4)])
def test_torchvision_is_the_resnet_up_to_a_layer(name: str, stride: int) -> None:
    torch.manual_seed(0)
    resnet = torchvision.models.get_model(name, weights=None).eval()
    backbone = Backbone(f"torchvision:{name}", stride, 4).eval()
    wanted = backbone.net.state_dict()
    backbone.net.load_state_dict({key: resnet.state_dict()[key] for key in wanted})
    batch = frames()
    x = images(batch, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        x = resnet.maxpool(resnet.relu(resnet.bn1(resnet.conv1(x))))
        for layer in (resnet.layer1, resnet.layer2, resnet.layer3)[: {4: 1, 8: 2, 16: 3}[stride]]:
            x = layer(x)
        found = backbone(batch)
    assert backbone.channels == x.shape[1]
    torch.testing.assert_close(found, pooled(x, 4), rtol=1e-4, atol=1e-5)


def test_weights_in_torchvisions_cache_are_used(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    torch.manual_seed(3)
    cached = torchvision.models.resnet18(weights=None)
    url = torchvision.models.ResNet18_Weights.DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    torch.save(cached.state_dict(), tmp_path / "checkpoints" / Path(url).name)
    backbone = Backbone("torchvision:resnet18", 8)
    load_pretrained(backbone, "torchvision:resnet18")
    assert torch.equal(backbone.net.layer2[1].conv2.weight, cached.layer2[1].conv2.weight)


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto"])
def test_weights_in_timms_cache_are_used(name: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    torch.manual_seed(3)
    whole = timm.create_model(name).eval()
    repository = tmp_path / f"models--{timm.get_pretrained_cfg(name).hf_hub_id.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    (repository / "snapshots" / "abc").mkdir(parents=True)
    save_file(whole.state_dict(), repository / "snapshots" / "abc" / "model.safetensors")
    backbone = Backbone(f"timm:{name}", 8, 2).eval()
    load_pretrained(backbone, f"timm:{name}")
    config = timm.get_pretrained_cfg(name)
    with torch.no_grad():
        stages = whole.forward_intermediates(images(frames(), config.mean, config.std), intermediates_only=True)
        expected = next(maps for maps in stages if maps.shape[-1] == 8)
        torch.testing.assert_close(backbone(frames()), pooled(expected, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("stride", [4, 8, 16, 32])
def test_the_small_net(stride: int) -> None:
    backbone = Backbone("conv", stride, 2)
    assert backbone(frames()).shape == (2, backbone.dim) == (2, 64 * 4)
    with torch.no_grad():
        assert backbone.net(torch.zeros(1, 3, 64, 64)).shape[-2:] == (64 // stride, 64 // stride)


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:convnext_atto"])
def test_other_timm_models(name: str) -> None:
    backbone = Backbone(name, 16, 2).eval()
    assert backbone(frames()).shape == (2, backbone.dim)


@pytest.mark.parametrize(
    ("name", "stride", "words"),
    [
        (
            "timm:efficientnet_lite",
            16,
            r"encoder\.backbone: timm has no model 'efficientnet_lite'; near: .*efficientnet",
        ),
        ("timm:qqqq", 16, r"encoder\.backbone: timm has no model 'qqqq'"),
        ("timm:tf_efficientnet_lite0", 5, r"encoder\.stride: tf_efficientnet_lite0 has strides \[2, 4, 8, 16, 32\].*5"),
        ("torchvision:resnet19", 16, r"encoder\.backbone: torchvision has no ResNet 'resnet19'"),
        ("torchvision:resnet18", 3, r"encoder\.stride: resnet18 has strides \[4, 8, 16, 32\].*3"),
        ("conv", 5, r"encoder\.stride: conv has strides .*5"),
        ("resnet18", 16, r"encoder\.backbone: must be timm:NAME, torchvision:resnetNN, or conv.*'resnet18'"),
    ],
)
def test_unknown_names_and_strides(name: str, stride: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Backbone(name, stride)


@pytest.mark.parametrize("name", ["timm:resnet10t", "torchvision:resnet18"])
@pytest.mark.parametrize("download", [False, True])
def test_missing_weights_say_what_to_do(name: str, download: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    if download and name.startswith("torchvision"):
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # a network that does not answer
    with pytest.raises(InputError) as caught:
        load_pretrained(Backbone(name), name, download)
    message = str(caught.value)
    for words in (name, "encoder.download=true", "encoder.pretrained=false", DEFAULT):
        assert words in message


def test_pictures_are_standardised_in_the_right_channel_order() -> None:
    """A backbone whose net passes its input on: red, green and blue come out as ImageNet's statistics say."""
    backbone = Backbone("torchvision:resnet18", 4, 1)
    backbone.net = torch.nn.Identity()
    picture = torch.zeros(1, 8, 8, 3, dtype=torch.uint8)
    picture[..., 0] = 255
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (0 - 0.406) / 0.225]
    torch.testing.assert_close(backbone(picture)[0], torch.tensor(expected))


@pytest.mark.parametrize(
    ("name", "stride", "size"),
    [("swin_s3_tiny_224", 16, 224), ("deit_tiny_patch16_224", 16, 224), ("coat_lite_tiny", 8, 224)],
)
def test_frames_are_resized_for_a_network_of_one_input_size(name: str, stride: int, size: int, capsys) -> None:
    """The features are those of the whole network, for a frame that is as large as its cells allow."""
    backbone = Backbone(f"timm:{name}", stride, 2).eval()
    assert backbone.picture == (size, size)
    backbone.check_frames(40, 56)
    assert (
        f"note: frames of 40 x 56 are resized to {size} x {size}, the input size of timm:{name}"
        in capsys.readouterr().out
    )
    batch = frames(2, 56)[:, :40]
    assert backbone(batch).shape == (2, backbone.dim)
    large = frames(1, size)
    backbone.check_frames(size, size)
    assert not capsys.readouterr().out
    config = timm.get_pretrained_cfg(name)
    with torch.no_grad():
        maps = backbone.net(images(large, config.mean, config.std))[0]
        maps = maps.permute(0, 3, 1, 2) if maps.shape[-1] == backbone.channels else maps
        assert maps.shape[1:] == (backbone.channels, size // stride, size // stride)
        torch.testing.assert_close(backbone(large), pooled(maps, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mambaout_kobe", "swinv2_cr_tiny_ns_224"])
def test_maps_with_the_channels_last(name: str) -> None:
    backbone = Backbone(f"timm:{name}", 32, 1).eval()
    maps = backbone.maps(frames())
    assert backbone.channels_last == (backbone.net.output_fmt.value == "NHWC")
    assert maps.shape[:2] == (2, backbone.channels)
    torch.testing.assert_close(backbone(frames()), maps.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_transformer_gives_the_features_of_its_last_block() -> None:
    backbone = Backbone("timm:deit_tiny_patch16_224", 16, 2)
    assert backbone.net.out_indices == (11,) or list(backbone.net.out_indices) == [11]


@pytest.mark.parametrize(("height", "width"), [(84, 84), (48, 80), (33, 70)])
@pytest.mark.parametrize("name", ["conv", "torchvision:resnet18", DEFAULT])
def test_frames_of_any_height_and_width(name: str, height: int, width: int) -> None:
    backbone = Backbone(name, 16, 2).eval()
    backbone.check_frames(height, width)
    assert backbone.maps(frames(1, 96)[:, :height, :width]).shape[-2:] == (-(-height // 16), -(-width // 16))


def test_a_network_that_cannot_take_the_frames() -> None:
    backbone = Backbone("timm:dla46_c", 16, 2).eval()
    backbone.check_frames(96, 64)
    with pytest.raises(
        InputError, match=r"encoder\.backbone: timm:dla46_c cannot take frames of 50 x 64 \(.*task\.size"
    ):
        backbone.check_frames(50, 64)


def test_more_cells_than_the_map_has() -> None:
    Backbone("conv", 16, 3).check_frames(48, 64)
    with pytest.raises(
        InputError, match=r"encoder\.pool: must be at most 3, since frames of 48 x 64 .* 3 x 4 .*found 4"
    ):
        Backbone("conv", 16, 4).check_frames(48, 64)
