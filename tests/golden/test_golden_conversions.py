"""The tables of CONVERSIONS.md, applied: the other library's outputs are ours.

The stand-ins have the others' names, shapes and arithmetic, as the optional tests show."""

import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

from tiled_ref.golden.__main__ import REFERENCE
from tiled_ref.models.backbone import CHANNELS, ResNet18Features
from tiled_ref.models.fastflow import FastFlow
from tiled_ref.models.reverse_distillation import ReverseDistillation

ROW = re.compile(r"^\| `([^`]+)` \| (`[^`]+`|none) \| ?([^|]*?) ?\|$", re.M)
KERNELS = pytest.mark.parametrize("kernels, sides", [("3x3", (3,)), ("alternating", (3, 1))])
WIDTHS, WIDE = (4, 8, 16), tuple(CHANNELS.values())
BACKBONE = SimpleNamespace(channels=dict(zip(CHANNELS, WIDTHS)))
SIZE = (64, 96)  # not square, so that an exchange of the axes shows


def converted(title, state):
    """Their state dict -> ours without counters, by the table under the title: each tensor is in
    exactly one row, each row, but for an encoder's, has a tensor."""
    document = (REFERENCE.parent / "CONVERSIONS.md").read_text("utf-8")
    rows = ROW.findall(re.search(rf"\n## {title}.*?(?=\n## |\Z)", document, re.S)[0])
    result, unused = {}, {theirs for theirs, *_ in rows if "feature_extractor" not in theirs}
    for name, x in state.items():
        fits = [(row, match) for row in rows if (match := re.fullmatch(pattern(row[0]), name))]
        assert len(fits) == 1, (name, fits)
        [((theirs, becomes, ours), match)] = fits
        unused.discard(theirs)
        if becomes != "none" and not name.endswith("num_batches_tracked"):
            result[ours.strip("`").format(**match.groupdict())] = eval(becomes.strip("`"), {"x": x})
    assert not unused
    return result


def pattern(name):
    name = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", re.escape(name))
    return name.replace("<rest>[^.]+", "<rest>.+")


def conv(n_in, n_out, kernel):
    return nn.Conv2d(n_in, n_out, kernel, 2, kernel // 2, bias=False)


class AllInOne(nn.Module):
    """FrEIA's AllInOneBlock as anomalib's FastFlow makes it."""

    def __init__(self, channels, kernel):
        super().__init__()
        half = channels // 2
        self.global_scale = nn.Parameter(torch.full((1, channels, 1, 1), 10.0))
        self.global_offset = nn.Parameter(torch.zeros(1, channels, 1, 1))
        matrix = torch.eye(channels)[torch.randperm(channels)]
        self.w_perm = nn.Parameter(matrix[..., None, None], requires_grad=False)
        self.w_perm_inv = nn.Parameter(matrix.T[..., None, None], requires_grad=False)
        first, last = (nn.Conv2d(half, n, kernel, padding="same") for n in (half, channels))
        self.subnet = nn.Sequential(first, nn.ReLU(), last)

    def forward(self, given):
        """x and the log_det of the blocks before -> y and log_det."""
        x, before = given
        passive, active = x.chunk(2, 1)
        scales, shifts = (0.1 * self.subnet(passive)).chunk(2, 1)
        scales = 2.0 * scales.tanh()
        gain = 0.1 * F.softplus(self.global_scale, beta=0.5)
        y = torch.cat([passive, active * scales.exp() + shifts], 1) * gain + self.global_offset
        log_det = scales.sum((1, 2, 3)) + x[0, 0].numel() * gain.log().sum()
        return F.conv2d(y, self.w_perm), before + log_det


class TheirFastFlow(nn.Module):
    """What anomalib's FastflowModel holds beside the encoder."""

    def __init__(self, widths, kernels):
        super().__init__()
        self.norms, self.fast_flow_blocks = nn.ModuleList(), nn.ModuleList()
        for k, channels in enumerate(widths):
            self.norms.append(nn.LayerNorm([channels, *(side // 4 >> k for side in SIZE)]))
            blocks = (AllInOne(channels, kernels[b % len(kernels)]) for b in range(8))
            self.fast_flow_blocks.append(nn.ModuleDict({"module_list": nn.Sequential(*blocks)}))

    def forward(self, layers):
        """Layers -> z and log_det of each."""
        for norm, flow, layer in zip(self.norms, self.fast_flow_blocks, layers):
            yield flow["module_list"]((norm(layer), 0.0))


class Up(BasicBlock):
    """The decoder's block that doubles the grid."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.conv1, up = (nn.ConvTranspose2d(n_in, n_out, 2, 2, bias=False) for _ in range(2))
        self.upsample = nn.Sequential(up, nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.upsample(x)).relu()


class BNLayer(nn.Module):
    """RD4AD's BN_layer, anomalib's OCBE."""

    def __init__(self, c1, c2, c3, c4):
        super().__init__()
        down = nn.Sequential(conv(3 * c3, c4, 1), nn.BatchNorm2d(c4))
        self.bn_layer = nn.Sequential(BasicBlock(3 * c3, c4, 2, down), BasicBlock(c4, c4))
        self.conv1, self.bn1 = conv(c1, c2, 3), nn.BatchNorm2d(c2)
        self.conv2, self.bn2 = conv(c2, c3, 3), nn.BatchNorm2d(c3)
        self.conv3, self.bn3 = conv(c2, c3, 3), nn.BatchNorm2d(c3)
        self.conv4, self.bn4 = conv(2 * c4, c4, 1), nn.BatchNorm2d(c4)  # not used

    def forward(self, layers):
        first = self.bn2(self.conv2(self.bn1(self.conv1(layers[0])).relu())).relu()
        second = self.bn3(self.conv3(layers[1])).relu()
        return self.bn_layer(torch.cat([first, second, layers[2]], 1))


class TheirDistillation(nn.Module):
    """bottleneck and decoder, de_resnet18."""

    def __init__(self, widths):
        super().__init__()
        self.bottleneck, self.decoder = BNLayer(*widths, 2 * widths[-1]), nn.ModuleDict()
        for k, n in enumerate(reversed(widths), start=1):
            self.decoder[f"layer{k}"] = nn.Sequential(Up(2 * n, n), BasicBlock(n, n))

    def forward(self, layers):
        x = self.bottleneck(layers)
        return [x := layer(x) for layer in self.decoder.values()][::-1]


def trained(module):
    """The module in evaluation mode, with no norm, gain or bias left at its initial value."""
    for name, value in module.state_dict().items():
        if "w_perm" not in name and (value.ndim != 4 or len(value) == 1):
            value.copy_(value + 0.1 * torch.randn(value.shape).abs())
    return module.eval()


def agree(found, expected):
    # Measured: a tenth of it, most often a hundredth.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def filled(stand_in, real, encoder=" "):
    """Real's tensors go into the stand-in, whose names and shapes must be the same, all but those
    of real's encoder, which are returned."""
    state = trained(real).state_dict()
    rest = {name: x for name, x in state.items() if not name.startswith(encoder)}
    stand_in.eval().load_state_dict(rest)
    return {name.removeprefix(encoder): state[name] for name in state.keys() - rest.keys()}


@pytest.fixture(autouse=True)
def layers():
    """Layers that an encoder of these widths may give."""
    torch.manual_seed(5)
    with torch.no_grad():
        sizes = [[2, c, *(side // 4 >> k for side in SIZE)] for k, c in enumerate(WIDTHS)]
        yield [torch.randn(size) for size in sizes]


@KERNELS
def test_fastflow_of_anomalib(layers, kernels, sides):
    theirs = trained(TheirFastFlow(WIDTHS, sides))
    model = FastFlow(BACKBONE, SIZE, kernels=kernels, seed=0, device="cpu")
    model.load_state(converted("FastFlow", theirs.state_dict()))
    for ours, layer, (z, log_det) in zip(model.flows, layers, theirs(layers)):
        agree(ours(layer), (z, log_det))
        agree(ours.inverse(z), ours.normalize(layer))  # by `back`


def test_reverse_distillation_of_rd4ad(layers):
    theirs = trained(TheirDistillation(WIDTHS))
    model = ReverseDistillation(BACKBONE, SIZE, seed=0, device="cpu")
    model.load_state(converted("Reverse", theirs.state_dict()))
    agree(model.student(layers)[3:], theirs(layers))


def test_backbone_of_timm():
    """torchvision's ResNet-18 has timm's names, see below."""
    theirs, images = trained(torchvision.models.resnet18()), torch.randn(1, 3, *SIZE)
    ours = ResNet18Features(torchvision.models.resnet18().state_dict())
    ours.load_state_dict(converted("timm", theirs.state_dict()))
    x = theirs.maxpool(theirs.bn1(theirs.conv1(images)).relu())
    agree(ours(images), [x := f(x) for f in (theirs.layer1, theirs.layer2, theirs.layer3)])


@pytest.mark.optional
def test_timm_has_torchvisions_names():
    timm = pytest.importorskip("timm")
    real, images = timm.create_model("resnet18"), torch.randn(1, 3, *SIZE)
    filled(torchvision.models.resnet18(), real)
    expected = real.forward_intermediates(images, indices=[1, 2, 3], intermediates_only=True)
    agree(ResNet18Features(real.state_dict())(images), expected)
    with torch.device("meta"):
        wide = timm.create_model("wide_resnet50_2")
        torchvision.models.wide_resnet50_2().load_state_dict(wide.state_dict())


@pytest.mark.optional
def test_freias_block_is_its_stand_in():
    freia = pytest.importorskip("FrEIA.modules")
    stand_in, x = AllInOne(6, 3), torch.randn(2, 6, 4, 5)
    real = freia.AllInOneBlock([x.shape[1:]], subnet_constructor=lambda *_: AllInOne(6, 3).subnet)
    filled(stand_in, real)
    (z,), log_det = real([x])
    agree(stand_in((x, 0.0)), (z, log_det))


@pytest.mark.optional
@KERNELS
def test_anomalibs_fastflow_is_its_stand_in(kernels, sides):
    anomalib = pytest.importorskip("anomalib.models.image.fastflow.torch_model")
    real = anomalib.FastflowModel(SIZE, "resnet18", False, conv3x3_only=kernels == "3x3")
    stand_in, images = TheirFastFlow(WIDE, sides), torch.randn(2, 3, *SIZE)
    encoder = ResNet18Features(filled(stand_in, real, "feature_extractor."))
    for k, outputs in enumerate(stand_in(layers := encoder(images))):
        agree(real.fast_flow_blocks[k](real.norms[k](layers[k])), outputs)
    model = FastFlow(encoder, SIZE, kernels=kernels, seed=0, device="cpu")
    model.load_state(converted("FastFlow", real.state_dict()))
    agree(model.predict(images)[0], real(images).anomaly_map[:, 0])


@pytest.mark.optional
def test_anomalibs_reverse_distillation_is_its_stand_in():
    anomalib = pytest.importorskip("anomalib.models.image.reverse_distillation.torch_model")
    options = {"input_size": SIZE, "layers": list(CHANNELS), "anomaly_map_mode": "multiply"}
    real = anomalib.ReverseDistillationModel("resnet18", pre_trained=False, **options)
    stand_in, images = TheirDistillation(WIDE), torch.randn(2, 3, *SIZE)
    encoder = ResNet18Features(filled(stand_in, real, "encoder.feature_extractor."))
    agree(stand_in(layers := encoder(images)), real.decoder(real.bottleneck(layers)))
    model = ReverseDistillation(encoder, SIZE, seed=0, device="cpu")
    model.load_state(converted("Reverse", real.state_dict()))
    for model.combine, mode in (("product", "multiply"), ("sum", "add")):
        real.anomaly_map_generator.mode = mode
        agree(model.predict(images)[0], real(images).anomaly_map[:, 0])
    wide = anomalib.ReverseDistillationModel("wide_resnet50_2", pre_trained=False, **options)
    converted("Reverse", wide.state_dict())
