"""Mistakes that are planted in port.js, to see whether the checker names them.

    python tests/port/planted.py [NUMBER ...] [--port FILE]

plants each mistake alone, runs its stage and prints what the checker says, as in
planted.md. One file because it is a table.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

PORT = Path(__file__).with_name("port.js")
sys.path.append(str(PORT.parents[2]))

from tiled_ref.golden import tiny  # noqa: E402
from tiled_ref.golden.__main__ import REFERENCE  # noqa: E402
from tiled_ref.golden.bundle import Bundle  # noqa: E402
from tiled_ref.golden.check import check  # noqa: E402

STAGES = {stage.name: stage for stage in tiny.stages()}


def _short(bits):
    """JavaScript that rounds a float64 to so many significant bits."""
    return f"((v) => {{ const t = v * {2 ** (53 - bits) + 1}; return t - (t - v); }})"


BF16, TF32 = _short(8), _short(11)
HALF = f"((v) => Math.abs(v) < 2 ** -14 ? Math.round(v * 2 ** 24) / 2 ** 24 : {TF32}(v))"

SCORE = "data.reduce((a, b) => Math.max(a, b))"
PLACE = "Math.fround((x + 0.5) * scale - 0.5)"
LEVEL = "(upper + lower + 2) >> 2"
KERNEL = "((d * C + c) * side + dy) * side + dx"
NORM = "[weight, bias, runningMean, runningVariance] = parts"
DEVIATION = "const deviation = Math.sqrt(variance + 1e-5)"
PRODUCT = "out.data[o] += x.data[i] * weights.data[k]"
WINDOW = """const row = y * stride + dy - padding;
      if (row < 0 || row >= H) continue;
      for (let dx = 0; dx < side; dx++) {
        const column = x * stride + dx - padding;"""
SAME = "Math.floor(Math.max(({n} - 1) * stride + side - {N}, 0) / 2)"
MIRROR = "function mirror(k, n) {"
RADIUS = "Math.trunc(4 * sigma + 0.5)"
INSIDE = "if (row < H && column < W) visit(i * columns + j, y * w + x, row * W + column);"
CORNER = "const [row, column] = [tops[i] + y, lefts[j] + x];"
NEAREST = "Math.floor((i * from) / to)"
CENTRES = "Math.max(((i + 0.5) * from) / to - 0.5, 0)"
CORNERS = "(to === 1 ? 0 : (i * (from - 1)) / (to - 1))"
DISTANCE = "Math.hypot(...a.map((x, i) => x - b[i]))"
RGB = "[...data]), weights.conv1"

COUPLED = """const second = c >= C / 2;
    const l = second ? 2 * Math.tanh(0.1 * net.data[i - half]) : 0;
    const b = second ? 0.1 * net.data[i] : 0;"""

# For every stage: (old text, new text, kind)
RESIZE = (
    (PLACE, "Math.fround(x * scale)", "positions without half-pixel centres"),
    (PLACE, "Math.fround((x * (n - 1)) / Math.max(m - 1, 1))", "align_corners in resize"),
    (PLACE, "((x + 0.5) * scale - 0.5)", "fraction in float64 instead of float32"),
    ("clipWeights && (i < 0", "(i < 0", "weights of rows clipped at the border like columns"),
    ("toEven(2048 * f)", "Math.trunc(2048 * f)", "weights truncated instead of rounded"),
    (LEVEL, "(upper + lower) >> 2", "final rounding constant forgotten"),
    (LEVEL, "toEven((row.first * along(row.i) + row.second * along(row.j)) / 2 ** 22)",
     "exact sum rounded half to even instead of OpenCV's shifts"),
    (LEVEL, "Math.floor((row.first * along(row.i) + row.second * along(row.j)) / 2 ** 22)",
     "sum truncated to an integer instead of rounded"),
    ("out.data[(y * W + x) * 3 + c]", "out.data[(y * W + x) * 3 + 2 - c]", "BGR for RGB"),
    ("let f = Math.fround(position - i)", "let f = Math.round(position - i)",
     "nearest pixel instead of bilinear"),
    (LEVEL, """(() => {
      let [sum, n] = [0, 0];
      for (let r = Math.floor((y * h) / H); r < Math.ceil(((y + 1) * h) / H); r++) {
        for (let q = Math.floor((x * w) / W); q < Math.ceil(((x + 1) * w) / W); q++) {
          sum += image.data[(r * w + q) * 3 + c];
          n += 1;
        }
      }
      return Math.round(sum / n);
    })()""", "area averaging (an antialias filter) instead of bilinear"),
    ("j: clip(i + 1), first, second", "j: clip(i + 1), first: second, second: first",
     "the two bilinear weights exchanged"),
    ("const [H, W] = size.data;", "const [W, H] = size.data;", "height and width exchanged"),
)

RESIZE_MASK = (
    (NEAREST, "Math.floor(((i + 0.5) * from) / to)", "nearest from pixel centres"),
    (NEAREST, "Math.min(Math.round((i * from) / to), from - 1)", "position rounded, not floored"),
    (NEAREST, "Math.min(Math.ceil((i * from) / to), from - 1)", "position rounded up"),
    (NEAREST, "Math.round((i * (from - 1)) / Math.max(to - 1, 1))",
     "nearest with aligned corners"),
    (NEAREST, "Math.min(i, from - 1)", "cropped instead of resized"),
    ("enlarge(mask, size.data, nearest)", "enlarge(mask, size.data, centres)",
     "bilinear mask cut to integers"),
)

NORMALISE = (
    ("[0.485, 0.456, 0.406]", "[0.406, 0.456, 0.485]", "means in BGR order"),
    ("[0.229, 0.224, 0.225]", "[0.225, 0.224, 0.229]", "standard deviations in BGR order"),
    ("x / 255 - means[c]", "x / 256 - means[c]", "divided by 256"),
    ("x / 255 - means[c]", "x - means[c]", "not scaled to [0, 1]"),
    (") / deviations[c]", ") / deviations[c] ** 2", "divided by the variance"),
    (") / deviations[c]", ") * deviations[c]", "multiplied by the standard deviation"),
    (") / deviations[c]", ")", "division by the standard deviation forgotten"),
    ("[0.485, 0.456, 0.406]", "[0.5, 0.5, 0.5]", "means of 0.5"),
    ("Math.floor(i / (h * w)) % 3;", "i % 3;", "channels-last memory order"),
    ("return (x / 255 - means[c]) / deviations[c]",
     f"return {HALF}((x / 255 - means[c]) / deviations[c])", "results in float16"),
)

TILE = (
    (INSIDE, INSIDE.replace("if (row < H && column < W) ", "").replace(
        "row * W + column", "mirror(row, H) * W + mirror(column, W)"),
     "reflect padding instead of zeros"),
    (INSIDE, INSIDE.replace("if (row < H && column < W) ", "").replace(
        "row * W + column", "Math.min(row, H - 1) * W + Math.min(column, W - 1)"),
     "edge pixels repeated instead of zeros"),
    (INSIDE, INSIDE.replace("if (row < H && column < W) ", "").replace(
        "row * W + column", "(row % H) * W + (column % W)"), "image wrapped around"),
    ("(_, i) => i * down)", "(_, i) => Math.min(i * down, H - h))",
     "last row of tiles moved back inside the image"),
    ("(_, i) => i * down)", "(_, i) => i * h)", "tile height used as vertical stride"),
    ("(_, j) => j * across)", "(_, j) => j * down)", "vertical stride used for both directions"),
    ("visit(i * columns + j, y", "visit(j * rows + i, y", "tiles numbered column by column"),
    ("visit(i * columns + j, y * w + x,", "visit(i * columns + j, x * h + y,",
     "pixels of a tile in column-major order"),
    ("tiles.data[(k * N * C + n) * h", "tiles.data[(n * rows * columns + k) * h",
     "image axis before the tile axes in memory"),
    (CORNER, CORNER.replace("tops[i] + y", "tops[i] + y - Math.floor((tops.at(-1) + h - H) / 2)")
     + "\n    if (row < 0) return;", "vertical padding on both sides"),
    ("Math.ceil((W - w) / across) + 1", "Math.floor((W - w) / across) + 1",
     "incomplete last column of tiles left out"),
)

BACKBONE = (
    (KERNEL, "((d * C + c) * side + side - 1 - dy) * side + side - 1 - dx",
     "kernels flipped (true convolution)"),
    (KERNEL, "((c * D + d) * side + dy) * side + dx", "weights read as IOHW instead of OIHW"),
    (KERNEL, "((d * C + c) * side + dx) * side + dy", "kernels transposed"),
    (KERNEL, "((d * side + dy) * side + dx) * C + c", "weights read as OHWI instead of OIHW"),
    (WINDOW, WINDOW.replace("dy - padding", "dy - " + SAME.format(n="h", N="H")).replace(
        "dx - padding", "dx - " + SAME.format(n="w", N="W")),
     "SAME padding at stride 2 (less before than after)"),
    (NORM, "[bias, weight, runningMean, runningVariance] = parts",
     "batch norm's weight and bias exchanged"),
    (NORM, "[weight, bias, runningVariance, runningMean] = parts",
     "batch norm's mean and variance exchanged"),
    (NORM, "[runningMean, runningVariance, weight, bias] = parts",
     "batch norm's rows read as mean, variance, weight, bias"),
    (DEVIATION, "const deviation = Math.sqrt(variance)", "batch norm's epsilon missing"),
    (DEVIATION, "const deviation = Math.sqrt(variance) + 1e-5",
     "batch norm's epsilon added after the root"),
    (DEVIATION, "const deviation = Math.sqrt(variance + 1e-3)",
     "batch norm's epsilon 1e-3 (as in Keras)"),
    (DEVIATION, "const deviation = variance + 1e-5", "batch norm divided by the variance"),
    ("let y = relu(batch", "let y = (batch", "ReLU after a block's first convolution missing"),
    ("2, -Infinity, Math.max", "2, 0, (a, b) => a + b / 9", "average instead of max pooling"),
    ("const row = y * stride + dy - 1;", "const row = y * stride + dy;",
     "max pooling without padding at the top"),
    ("w('bn2'))", "w('bn1'))", "first batch norm used twice in a block"),
    ("convolution(images, weights.conv1, 2", """convolution(array(images.shape, parts(images)
    .flatMap((image) => parts(image).reverse().flatMap(({ data }) => [...data]))),
  weights.conv1, 2""", "colour channels in BGR order"),
    (PRODUCT, f"out.data[o] += {HALF}(x.data[i]) * {HALF}(weights.data[k])",
     "convolutions in float16"),
    (PRODUCT, f"out.data[o] += {TF32}(x.data[i]) * {TF32}(weights.data[k])",
     "convolutions in TF32"),
    (PRODUCT, f"out.data[o] += {BF16}(x.data[i]) * {BF16}(weights.data[k])",
     "convolutions in bfloat16"),
)

PADIM_EMBEDDING = (
    ("enlarge(layer, [h, w], nearest)", "enlarge(layer, [h, w], centres)",
     "bilinear instead of nearest"),
    ("enlarge(layer, [h, w], nearest)", "enlarge(layer, [h, w], corners)",
     "bilinear with align_corners instead of nearest"),
    (NEAREST, "Math.floor(((i + 0.5) * from) / to)", "nearest-exact instead of nearest"),
    ("[...channels.data].map((k)", "[...channels.data].sort((a, b) => a - b).map((k)",
     "channels sorted"),
    ("[...channels.data].map((k)", "[...channels.data].map((_, k)",
     "first channels instead of the chosen ones"),
    ("part(image, k))", "part(image, (k + 27) % 28))", "channel numbers off by one"),
    ("concatenate([layer1, ...grown])", "concatenate([grown[1], grown[0], layer1])",
     "layers concatenated in reverse order"),
)

PADIM_PARAMETERS = (
    ("total(products) / (N - 1)", "total(products) / N", "biased covariance"),
    ("(i === j ? 0.01 : 0)", "(i === j ? 0.001 : 0)", "regularisation of 0.001"),
    ("(i === j ? 0.01 : 0)", "0.01",
     "0.01 added to every entry"),
    ("+ (i === j ? 0.01 : 0)", "* (i === j ? 1.01 : 1)",
     "regularisation multiplied instead of added"),
    ("(x[i] - a) * (x[j] - b)", "x[i] * x[j]", "second moments without the mean subtracted"),
    ("if (i <= j) factors.push(inverse[j][i])", "if (i >= j) factors.push(inverse[i][j])",
     "lower triangle row by row"),
    ("each([D, D], (i, j) => { if (i <= j) factors", "each([D, D], (j, i) => { if (i <= j) factors",
     "triangle column by column"),
    ("invertLower(cholesky(sigma))", "cholesky(sigma)", "Cholesky factor not inverted"),
    ("i % (h * w) === p)", "i % (h * w) === (p % h) * w + Math.floor(p / h))",
     "positions in column-major order"),
    ("? Math.sqrt(rest) :", "? rest :", "square root on the diagonal of the factor missing"),
    ("const products = own.map((x) => (x[i] - a) * (x[j] - b))",
     f"const products = own.map((x) => {BF16}(x[i] - a) * {BF16}(x[j] - b))",
     "covariance in bfloat16"),
)

PADIM_MAP = (
    ("return Math.hypot(...image)", "return Math.hypot(...image) ** 2", "squared distances"),
    ("(x[row] - centre[row])", "x[row]", "mean not subtracted"),
    ("image[column] +=", "image[row] +=", "product with the factor along the wrong axis"),
    ("const own = i % (h * w);", "const own = (i % w) * h + Math.floor((i % (h * w)) / w);",
     "positions in column-major order"),
    ("return Math.hypot(...image)", "return total([...image].map(Math.abs))",
     "L1 instead of Euclidean length"),
    ("map: blur(enlarge(distances, size.data, centres), 4)",
     "map: enlarge(distances, size.data, centres)", "blur forgotten"),
    ("map: blur(enlarge(distances, size.data, centres), 4)",
     "map: enlarge(blur(distances, 4), size.data, centres)", "blurred before enlarging"),
    ("enlarge(distances, size.data, centres), 4)", "enlarge(distances, size.data, corners), 4)",
     "align_corners"),
    ("enlarge(distances, size.data, centres), 4)", "enlarge(distances, size.data, nearest), 4)",
     "nearest instead of bilinear"),
    ("enlarge(distances, size.data, centres), 4)", "enlarge(distances, size.data, centres), 2)",
     "sigma 2 instead of 4"),
    (RADIUS, "Math.trunc(3 * sigma + 0.5)", "radius of 3 sigma"),
    (MIRROR, MIRROR + " return Math.min(Math.max(k, 0), n - 1);", "edge repeated in the blur"),
    (MIRROR, MIRROR + """
  const whole = 2 * n;
  const at = ((k % whole) + whole) % whole;
  return at < n ? at : whole - 1 - at;
""", "symmetric border (edge repeated once) instead of reflect"),
)

PATCHCORE_EMBEDDING = (
    ("(sum, x) => sum + x / 9", "(sum, x) => sum + x", "sum of neighbours not divided by 9"),
    ("(sum, x) => sum + x / 9", "(sum, x) => Math.max(sum, x)", "max instead of average pooling"),
    ("enlarge(mean3, layer2.shape.slice(2), centres)",
     "enlarge(mean3, layer2.shape.slice(2), nearest)", "nearest instead of bilinear"),
    ("enlarge(mean3, layer2.shape.slice(2), centres)",
     "enlarge(mean3, layer2.shape.slice(2), corners)", "align_corners"),
    ("concatenate([mean2, grown])", "concatenate([grown, mean2])", "layer3 before layer2"),
    ("[mean2, mean3] = [layer2, layer3].map(mean)", "[mean2, mean3] = [layer2, layer3]",
     "average pooling forgotten"),
    ("pool(layer, 1, 0, (sum, x) => sum + x / 9)",
     """(() => {
    const count = pool(array(layer.shape, layer.data.map(() => 1)), 1, 0, (s, x) => s + x).data;
    const sums = pool(layer, 1, 0, (s, x) => s + x);
    return array(sums.shape, sums.data.map((sum, i) => sum / count[i]));
  })()""", "padding not counted in the average (count_include_pad false)"),
    (CENTRES, "((i * from) / to)", "bilinear without half-pixel centres"),
)

PATCHCORE_PARAMETERS = (
    ("const chosen = included ? [first] : [];", "const chosen = [first];",
     "first point always a member"),
    ("const chosen = included ? [first] : [];", "const chosen = [];",
     "first point never put in the coreset"),
    ("chosen.map((i) => part(patches, i))",
     "chosen.sort((a, b) => a - b).map((i) => part(patches, i))", "coreset sorted"),
    ("distances[j] > distances[i] ? j : i", "distances[j] >= distances[i] ? j : i",
     "last instead of first among equally far points"),
    ("distances[j] > distances[i] ? j : i", "distances[j] < distances[i] ? j : i",
     "nearest instead of farthest point chosen"),
    ("Math.min(distances[i], distance(point, points[farthest]))",
     "distance(point, points[farthest])", "distance to the newest member only"),
    ("Math.min(distances[i], distance(point, points[farthest]))",
     "Math.max(distances[i], distance(point, points[farthest]))",
     "maximum instead of minimum of the distances"),
    ("distance(point, points[first]))", "Infinity)", "distances start from infinity"),
    ("rows.map((row) => dot(row, data))", "[...data]", "projection forgotten"),
    (DISTANCE, "1 - dot(a, b) / Math.sqrt(dot(a, a) * dot(b, b))", "cosine for Euclid"),
    (DISTANCE, "total(a.map((x, i) => Math.abs(x - b[i])))", "L1 instead of Euclidean distance"),
)

PATCHCORE_MAP = (
    ("const distance = (a, b) => Math.hypot", "const distance = (a, b) => 0.5 * Math.hypot",
     "distances halved"),
    (DISTANCE, "1 - total(a.map((x, i) => x * b[i])) / (Math.hypot(...a) * Math.hypot(...b))",
     "cosine for Euclid"),
    (DISTANCE, "total(a.map((x, i) => (x - b[i]) ** 2))", "squared distances"),
    (DISTANCE, "total(a.map((x, i) => Math.abs(x - b[i])))", "L1 instead of Euclidean distance"),
    (DISTANCE, "Math.sqrt(Math.max(total(a.map((x, i) => "
     f"{TF32}(x) ** 2 + {TF32}(b[i]) ** 2 - 2 * {TF32}(x) * {TF32}(b[i]))), 0))",
     "distances by matrix products in TF32"),
    (DISTANCE, f"Math.hypot(...a.map((x, i) => {HALF}(x) - {HALF}(b[i])))",
     "distances in float16"),
    ("const smallest = Math.min(...all);", "const smallest = Math.max(...all);",
     "farthest instead of nearest member of the bank"),
    ("const smallest = Math.min(...all);", "const smallest = all.sort((i, j) => i - j)[1];",
     "second nearest member of the bank"),
    ("enlarge(distances, size.data, nearest), 4)", "enlarge(distances, size.data, centres), 4)",
     "bilinear instead of nearest"),
    ("(2 * sigma * sigma)", "(sigma * sigma)", "factor 2 missing in the Gaussian's exponent"),
    ("weight / total(weights)", "weight", "blur's weights not normalised"),
    (MIRROR, MIRROR + " return ((k % n) + n) % n;", "periodic border in the blur"),
)

PATCHCORE_SCORE = (
    ("order.slice(0, b)", "order.slice(1, b + 1)", "nearest member left out of the neighbours"),
    ("order.slice(0, b)", "order.slice(0, b + 1)", "one neighbour too many"),
    ("order.slice(0, b)", "order.slice(0, b - 1)", "one neighbour too few"),
    ("distance(x, members[i]))", "distance(members[member], members[i]))",
     "distances from the bank vector instead of the patch"),
    ("(1 - 1 / total(powers)) * s", "s / total(powers)",
     "softmax not subtracted from 1"),
    ("(1 - 1 / total(powers)) * s", "1 - 1 / total(powers)",
     "weight not multiplied by the distance"),
    ("Math.exp(d - distances[0])", "Math.exp(distances[0] - d)", "softmax of negative distances"),
    ("if (b === 1) return s;", "", "weighted also with one neighbour"),
    ("return (1 - 1 / total(powers)) * s;", "return s;", "weighting forgotten"),
    ("fromMember[i] - fromMember[j]", "fromMember[j] - fromMember[i]",
     "farthest instead of nearest neighbours"),
)

FASTFLOW_EMBEDDING = (
    (COUPLED, COUPLED.replace(">=", "<").replace("i]", "i + half]").replace("i - half]", "i]"),
     "first half of the channels transformed instead of the second"),
    ("net.data[i - half]) : 0", "net.data[i]) : 0", "scale read from the shift's half"),
    ("2 * Math.tanh(0.1 * net.data[i - half])", "1.9 * Math.tanh(0.1 * net.data[i - half])",
     "clamp of 1.9 instead of 2"),
    ("2 * Math.tanh(0.1 * net.data[i - half])", "2 * Math.tanh(net.data[i - half])",
     "factor 0.1 before tanh missing"),
    ("2 * Math.tanh(0.1 * net.data[i - half])",
     "2 * 0.636 * Math.atan(0.1 * net.data[i - half])", "atan clamp instead of tanh"),
    ("second ? 0.1 * net.data[i] : 0", "second ? net.data[i] : 0",
     "factor 0.1 of the shift missing"),
    ("y.data[i] * Math.exp(l) + b", "(y.data[i] + b) * Math.exp(l)",
     "shifted before scaling"),
    ("y.data[i] * Math.exp(l) + b", "(y.data[i] - b) * Math.exp(-l)", "inverse coupling"),
    ("const c = order.data[k];", "const c = order.data.indexOf(k);", "inverse permutation"),
    ("const c = order.data[k];", "const c = k;", "permutation forgotten"),
    ("const g = 0.1 * softplus(scale.data[c])", "const g = softplus(scale.data[c])",
     "factor 0.1 of the global scale missing"),
    ("2 * Math.log1p(Math.exp(x / 2))", "Math.log1p(Math.exp(x))",
     "softplus with beta 1 instead of 1/2"),
    ("g * value + offset.data[c]", "g * (value + offset.data[c])",
     "offset added before the global scale"),
    ("l + Math.log(g)", "l", "log of the global scale missing in log_det"),
    ("l + Math.log(g)", "-(l + Math.log(g))", "sign of log_det"),
    ("const place = (i) => (i % (h * w)) * C + (Math.floor(i / (h * w)) % C);",
     "const place = (i) => i % (C * h * w);", "norm weights read as (C, h, w)"),
    ("const variance = average(own.map((value) => (value - mean) ** 2))",
     "const variance = total(own.map((value) => (value - mean) ** 2)) / (own.length - 1)",
     "unbiased variance in LayerNorm"),
    ("(value - mean) / Math.sqrt(variance + 1e-5)", "(value - mean) / Math.sqrt(variance)",
     "LayerNorm's epsilon missing"),
    (KERNEL, "((d * C + c) * side + side - 1 - dy) * side + side - 1 - dx",
     "kernels flipped (true convolution)"),
    (KERNEL, "((c * D + d) * side + dy) * side + dx", "weights read as IOHW instead of OIHW"),
    ("if (bias) out.data.forEach((_, o) =>", "if (false) out.data.forEach((_, o) =>",
     "bias of the convolutions forgotten"),
    (PRODUCT, f"out.data[o] += {BF16}(x.data[i]) * {BF16}(weights.data[k])",
     "convolutions in bfloat16"),
    ("const hidden = relu(", "const hidden = (", "ReLU between the convolutions missing"),
)

FASTFLOW_PARAMETERS = (
    ("const g = slope + decay * value[i];",
     "const g = slope; value[i] *= 1 - rate * decay;", "AdamW: decoupled decay"),
    ("const g = slope + decay * value[i];", "const g = slope;", "weight decay forgotten"),
    ("const g = slope + decay * value[i];", "const g = slope - decay * value[i];",
     "sign of the weight decay"),
    ("first[i] = beta1 * first[i] + (1 - beta1) * g",
     "first[i] = (1 - beta1) * first[i] + beta1 * g",
     "momentum reversed in Adam's first moment"),
    ("(first[i] / (1 - beta1 ** t))", "first[i]", "bias correction of the first moment missing"),
    ("second[i] / (1 - beta2 ** t)", "second[i]", "bias correction of the second moment missing"),
    ("(1 - beta2) * g ** 2", "(1 - beta2) * g", "gradient not squared in the second moment"),
    ("(deviation + epsilon)", "deviation", "Adam's epsilon missing"),
    ("betas: [0.9, 0.999]", "betas: [0.9, 0.99]",
     "second beta 0.99"),
    ("rate: 0.001,", "rate: 0.01,",
     "learning rate ten times too large"),
    ("value[i] -= (rate", "value[i] += (rate", "gradient ascent"),
    ("tensor.gradient.fill(0)", "if (t === 1) tensor.gradient.fill(0)",
     "gradients accumulated over the steps"),
    ("gradient(logDet)[n] -= 1 / N", "gradient(logDet)[n] -= 0",
     "log_det left out of the gradient"),
    ("average(fastflowLoss(own).loss.data)", "total([...fastflowLoss(own).loss.data])",
     "loss summed over the images in its value"),
    ("dnet[i - half] += dl * 0.1 * 2 * (1 - (l / 2) ** 2)", "dnet[i - half] += dl * 0.1 * 2",
     "derivative of tanh missing"),
)

FASTFLOW_MAP = (
    ("(-0.5 * dot(x, x)) / C", "-0.5 * dot(x, x)", "sum instead of mean over channels"),
    ("(-0.5 * dot(x, x)) / C", "-dot(x, x) / C", "factor one half missing"),
    ("=> -Math.exp(", "=> Math.exp(", "sign of the likelihood"),
    ("=> -Math.exp(", "=> 1 - Math.exp(", "1 minus the likelihood instead of its negative"),
    ("likelihoods), size.data, centres)", "likelihoods), size.data, corners)", "align_corners"),
    ("likelihoods), size.data, centres)", "likelihoods), size.data, nearest)",
     "nearest instead of bilinear"),
    ("map.data[i] += number / 3", "map.data[i] += number", "sum instead of mean of the layers"),
    ("(-0.5 * dot(x, x)) / C", f"(-0.5 * {BF16}(dot(x, x))) / C", "sum of squares in bfloat16"),
    ("for (const z of [z1, z2, z3]) {", "for (const z of [z1, z2, z2]) {",
     "layer 2 taken twice, layer 3 left out"),
)

PADIM_SCORE = (
    (SCORE, "data.reduce((a, b) => Math.max(a, b), 0)", "maximum starts from zero"),
    (SCORE, "data.reduce((a, b) => Math.min(a, b))", "smallest instead of largest value"),
    (SCORE, "total([...data]) / data.length", "mean instead of maximum"),
    ("parts(maps).map(({ data }) => data.reduce", "parts(maps).map(() => maps.data.reduce",
     "maximum over all images instead of each"),
)

FASTFLOW_SCORE = (
    (SCORE, "data.reduce((a, b) => Math.max(Math.abs(a), Math.abs(b)))",
     "maximum of absolute values"),
    (SCORE, "data.reduce((a, b) => Math.max(a, b), 0)", "maximum starts from zero"),
    (SCORE, "[...data].sort((a, b) => b - a)[Math.min(1, data.length - 1)]",
     "second largest value"),
    (SCORE, "-[...data].map((x) => -x).reduce((a, b) => Math.max(a, b))",
     "minimum, as if anomalies were most negative"),
    (SCORE, "[...data].sort((a, b) => a - b)[data.length >> 1]", "median instead of maximum"),
)

RD_SCORE = (
    (SCORE, "data.reduce((a, b) => Math.max(a, b)) - data.reduce((a, b) => Math.min(a, b))",
     "range of the map instead of its maximum"),
    (SCORE, f"{BF16}(data.reduce((a, b) => Math.max(a, b)))", "score in bfloat16"),
    (SCORE, "[...data].sort((a, b) => a - b)[Math.floor(0.99 * (data.length - 1))]",
     "99th percentile instead of maximum"),
    (SCORE, "[...data].sort().at(-1)", "numbers sorted as text"),
    (SCORE, "data[0]", "first pixel instead of the largest"),
)

RD_EMBEDDING = (
    ("concatenate([from1, from2, layer3])", "concatenate([layer3, from2, from1])",
     "layers concatenated in reverse order"),
    (KERNEL, "((d * C + c) * side + side - 1 - dy) * side + side - 1 - dx",
     "kernels flipped (true convolution)"),
    (KERNEL, "((c * D + d) * side + dy) * side + dx", "weights read as IOHW instead of OIHW"),
    (WINDOW, WINDOW.replace("dy - padding", "dy - " + SAME.format(n="h", N="H")).replace(
        "dx - padding", "dx - " + SAME.format(n="w", N="W")),
     "SAME padding at stride 2 (less before than after)"),
    (NORM, "[bias, weight, runningMean, runningVariance] = parts",
     "batch norm's weight and bias exchanged"),
    (NORM, "[weight, bias, runningVariance, runningMean] = parts",
     "batch norm's mean and variance exchanged"),
    (DEVIATION, "const deviation = Math.sqrt(variance)", "batch norm's epsilon missing"),
    ("const reduce = (x, kernel, norm) => relu(", "const reduce = (x, kernel, norm) => (",
     "ReLU of the fuse convolutions missing"),
    ("return { decoded1, decoded2, decoded3 }",
     "return { decoded1: decoded3, decoded2, decoded3: decoded1 }",
     "decoded layers returned in the decoder's order"),
    ("return crop(x, layer.shape.slice(1));", "return x = crop(x, layer.shape.slice(1));",
     "cut before the next block, not only in the output"),
    (PRODUCT, f"out.data[o] += {TF32}(x.data[i]) * {TF32}(weights.data[k])",
     "convolutions in TF32"),
    ("x = block(x, weights, 'bottleneck.embed.1', 1);", "", "second embedding block left out"),
    ("x = block(x, weights, `${name}.1`, 1);", "", "decoder's plain blocks left out"),
)

RD_PARAMETERS = (
    ("rate: 0.005, betas: [0.5, 0.999], decay: 0", "rate: 0.005, betas: [0.9, 0.999], decay: 0",
     "first beta 0.9 instead of 0.5"),
    ("rate: 0.005, betas: [0.5, 0.999], decay: 0", "rate: 0.001, betas: [0.5, 0.999], decay: 0",
     "learning rate 0.001 instead of 0.005"),
    ("rate: 0.005, betas: [0.5, 0.999], decay: 0", "rate: 0.005, betas: [0.5, 0.999], decay: 1e-4",
     "weight decay where there is none"),
    ("runningMean[c] += 0.1 * (mean - runningMean[c])",
     "runningMean[c] += 0.9 * (mean - runningMean[c])",
     "momentum of the running mean reversed"),
    ("const unbiased = (variance * count) / (count - 1);", "const unbiased = variance;",
     "running variance biased"),
    ("runningVariance[c] += 0.1 * (unbiased - runningVariance[c]);", "",
     "running variance not updated"),
    ("    if (tape) {\n", "    if (false) {\n", "batch norm in evaluation mode while training"),
    ("slopes[i] -= (along - across) / all.length", "slopes[i] -= along / all.length",
     "length of the decoded vector treated as constant in the gradient"),
    ("[layer, decoded] = [inputs[`layer${k}`], inputs[`decoded${k}`]]",
     "[decoded, layer] = [inputs[`layer${k}`], inputs[`decoded${k}`]]",
     "gradient goes to the encoder's layers"),
    ("second[i] = beta2 * second[i] + (1 - beta2) * g ** 2",
     "second[i] = (1 - beta2) * second[i] + beta2 * g ** 2",
     "second moment's beta reversed"),
    ("const rest = dout[i] - dbias / count - (unit(i) * dweight) / count;",
     "const rest = dout[i];", "batch statistics treated as constants in the gradient"),
)

RD_MAP = (
    ("(lengthA * lengthB), lengthA", "1, lengthA", "scalar product instead of cosine"),
    ("map(({ cosine }) => 1 - cosine)", "map(({ cosine }) => cosine)",
     "similarity, not 1 minus it"),
    ("map(({ cosine }) => 1 - cosine)", "map(({ cosine }) => (1 - cosine) / 2)",
     "distance halved"),
    ("enlarge(unlike, size.data, corners)", "enlarge(unlike, size.data, centres)",
     "align_corners false"),
    ("enlarge(unlike, size.data, corners)", "enlarge(unlike, size.data, nearest)",
     "nearest instead of bilinear"),
    ("multiplied[i] *= number;", "multiplied[i] += number - (k === 1);",
     "maps added instead of multiplied"),
    ("blur(array(sides, multiplied), 4)", "array(sides, multiplied)", "blur forgotten"),
    ("blur(array(sides, multiplied), 4)", "blur(array(sides, multiplied), 16)",
     "sigma 16 instead of 4"),
    (RADIUS, "Math.trunc(2 * sigma + 0.5)", "radius of 2 sigma"),
    ("Math.max(Math.sqrt(dot(x, x)), 1e-8)", "Math.sqrt(dot(x, x))",
     "guard against zero length missing"),
    ("differences(layers[`layer${k}`], layers[`decoded${k}`])",
     "differences(layers[`layer${k}`], layers[`decoded${k}`]).map(Math.sqrt)",
     "square root of the distance"),
)

UNTILE = (
    ("map.data[i] = sum / covering[i % (H * W)]", "map.data[i] = sum", "sum instead of mean"),
    ("map.data[n * H * W + pixel] += maps", "map.data[n * H * W + pixel] = maps",
     "last tile wins in overlaps"),
    ("map.data[i] = sum / covering[i % (H * W)]", "map.data[i] = sum / Math.max(...covering)",
     "divided by the largest number of tiles everywhere"),
    ("visit(i * columns + j, y", "visit(j * rows + i, y", "tiles numbered column by column"),
    ("visit(i * columns + j, y * w + x,", "visit(i * columns + j, x * h + y,",
     "pixels of a tile in column-major order"),
    ("maps.data[(k * N + n) * h * w",
     "maps.data[(n * (maps.data.length / (N * h * w)) + k) * h * w",
     "image axis read before the tile axes"),
    ("(_, i) => i * down)", "(_, i) => Math.min(i * down, H - h))",
     "last row of tiles moved back inside the image"),
    ("(_, j) => j * across)", "(_, j) => j * w)", "tile width used as horizontal stride"),
    (CORNER, "const [row, column] = [H - tops[i] - h + y, lefts[j] + x];\n    if (row < 0) return;",
     "tiles placed from the bottom upwards"),
    ("map.data[n * H * W + pixel] += maps.data[(k * N + n) * h * w + inside]",
     "map.data[n * H * W + pixel] = Math.max(map.data[n * H * W + pixel], "
     "maps.data[(k * N + n) * h * w + inside])", "maximum instead of mean of the tiles"),
)

MEAN_SCORE = (
    ("score.data[i % N] += value / (rows * columns)", "score.data[i % N] += value",
     "sum instead of mean"),
    ("score.data[i % N] += value / (rows * columns)",
     "score.data[Math.floor(i / (rows * columns))] += value / (rows * columns)",
     "scores read with the image axis first"),
    ("score.data[i % N] += value / (rows * columns)",
     "score.data[i % N] = Math.max(score.data[i % N] || -Infinity, value)",
     "maximum instead of mean"),
    ("score.data[i % N] += value / (rows * columns)",
     "score.data[i % N] += value / (rows * columns - 1)", "divided by n - 1"),
    ("score.data[i % N] += value / (rows * columns)",
     "score.data[i % N] += value / N", "divided by the number of images"),
)

SEAM_MASK = (
    ("b - reach <= pixel && pixel < b + reach", "b - reach <= pixel && pixel <= b + reach",
     "band one pixel too wide after the border"),
    ("b - reach <= pixel && pixel < b + reach", "b - reach < pixel && pixel < b + reach",
     "band one pixel too narrow before the border"),
    ("b - reach <= pixel && pixel < b + reach", "b - reach - 1 <= pixel && pixel < b + reach",
     "band one pixel too wide before the border"),
    ("b - reach <= pixel && pixel < b + reach", "b - reach <= pixel && pixel < b + reach - 1",
     "band one pixel too narrow after the border"),
    ("Math.trunc(width * side)", "Math.round(width * side)", "reach rounded, not truncated"),
    ("Math.trunc(width * side)", "Math.ceil(width * side)", "reach rounded up"),
    ("Math.trunc(width * side)", "Math.trunc((width * side) / 2)",
     "width taken as that of the whole band"),
    ("flatMap((start) => [start, start + side])", "flatMap((start) => [start])",
     "only starts of tiles, not their ends"),
    ("flatMap((start) => [start, start + side])", "flatMap((start) => [start + side])",
     "only ends of tiles, not their starts"),
    ("row || column)", "row && column)", "only crossings of bands (and for or)"),
    ("nearBorder(H, tops, h, width)", "nearBorder(H, tops, H, width)",
     "share of the image instead of the tile"),
    ("border > 0 && border < n", "border >= 0 && border <= n",
     "the image's own edges counted as seams"),
)

SMOOTHING = (
    ("? blurred[i] : x", "? x : blurred[i]", "mask inverted"),
    ("(mask.data[i % mask.data.length] ? blurred[i] : x)", "blurred[i]",
     "whole map blurred, not only the seams"),
    (RADIUS, "Math.trunc(3 * sigma + 0.5)", "radius of 3 sigma"),
    (RADIUS, "Math.trunc(4 * sigma + 0.5) - 1", "radius one too small"),
    ("(2 * sigma * sigma)", "(2 * sigma)", "sigma not squared in the Gaussian"),
    ("(2 * sigma * sigma)", "(sigma * sigma)", "factor 2 missing in the Gaussian's exponent"),
    ("weight / total(weights)", "weight / (sigma * Math.sqrt(2 * Math.PI))",
     "divided by the integral instead of the sum of the weights"),
    (MIRROR, MIRROR + " return Math.min(Math.max(k, 0), n - 1);", "edge repeated in the blur"),
    (MIRROR, MIRROR + """
  const whole = 2 * n;
  const at = ((k % whole) + whole) % whole;
  return at < n ? at : whole - 1 - at;
""", "symmetric border (edge repeated once) instead of reflect"),
    ("pass(columns, (y", "pass(maps.data, (y", "blurred along the rows only"),
    ("b - reach <= pixel && pixel < b + reach", "b - reach <= pixel && pixel <= b + reach",
     "band one pixel too wide after the border"),
    ("rounded(total(weights", f"{HALF}(total(weights", "blur rounded to float16"),
    ("blur(maps, sigma).data", "blur(maps, sigma / 2).data", "sigma halved"),
)

THRESHOLD = (
    ("if (score >= candidate &&", "if (score > candidate &&", "> for >= in the true positives"),
    ("if (f1 > best.f1)", "if (f1 >= best.f1)", "largest instead of smallest best threshold"),
    ("(2 * found) / (2 * found + wrong)", "found / (found + wrong)", "Jaccard index for F1"),
    ("(2 * found) / (2 * found + wrong)", "1 - wrong / scores.data.length", "accuracy for F1"),
    ("threshold: Math.max(...scores.data), f1: NaN", "threshold: Math.min(...scores.data), f1: NaN",
     "smallest score without anomalous labels"),
    ("f1: NaN };\n  let best", "f1: 0 };\n  let best", "f1 of 0 where it is undefined"),
    ("[...scores.data].sort((a, b) => a - b)", "[...scores.data].sort((a, b) => b - a)",
     "candidates from the largest down: ties go to the larger"),
    ("best = { threshold: candidate, f1 }", "best = { threshold: candidate - 1e-3, f1 }",
     "threshold a little below the score"),
    ("if (score >= candidate && labels.data[i] !== 0)",
     "if (score >= candidate && labels.data[i] === 0)", "labels inverted"),
)

NORMALISATION = (
    ("(x - middle) / range + 0.5 :", "(x - minimum) / range :", "min-max without the threshold"),
    ("(x - middle) / range + 0.5 :", "(x - middle) / range :", "0.5 not added"),
    ("return Math.min(Math.max(y, 0), 1);", "return y;", "not clamped"),
    ("Math.sign(x - middle) / 2 + 0.5", "0.5", "all 0.5 where the range is zero"),
    ("Math.sign(x - middle) / 2 + 0.5", "(x >= middle ? 1 : 0)",
     "1 instead of 0.5 at the threshold where the range is zero"),
    ("range > 0 ? (x", "true ? (x", "division by a range of zero"),
    ("const range = maximum - minimum;", "const range = maximum;", "minimum not subtracted"),
    ("(x - middle) / range + 0.5 :", "(x - middle) / (2 * range) + 0.5 :",
     "divided by twice the range"),
)

REGIONS = (
    ("each([3, 3], (i, j) => {", "each([3, 3], (i, j) => {\n        if ((i + j) % 2 === 0) return;",
     "4-connectivity instead of 8"),
    ("masks.data[pixel] !== 0 &&", "masks.data[pixel] === 1 &&", "only the value 1 is anomalous"),
    ("masks.data[pixel] !== 0 &&", "masks.data[pixel] > 127 &&", "mask thresholded at half of 255"),
    ("Math.floor(pixel / w) % h;", "Math.floor(pixel / w);",
     "rows counted through the images"),
    ("column < 0 || column >= w) return;\n        const neighbour",
     "false) return;\n        const neighbour",
     "regions run over the left and right edge"),
    ("    region += 1;\n", "    if (first % (h * w) === 0) region = 0;\n    region += 1;\n",
     "numbers start again at an image whose first pixel is anomalous"),
    ("const x = pixel % w;", "const x = pixel % h;", "width and height exchanged"),
    ("let region = 0;", "let region = 1;", "regions numbered from 2"),
)

AUROC = (
    ("Number(high > low)", "0", "only ties counted"),
    ("high === low ? 0.5 : Number(high > low)", "Number(high > low)", "ties counted as lost"),
    ("high === low ? 0.5 : Number(high > low)", "Number(high >= low)", "ties counted as won"),
    ("Number(high > low)", "Number(high < low)", "sign of the scores reversed"),
    ("const anomalous = scores.data.filter((_, i) => labels.data[i] !== 0)",
     "const anomalous = scores.data.filter((_, i) => labels.data[i] === 1)",
     "only the label 1 is anomalous"),
    ("wins / (anomalous.length * normal.length)", "wins / scores.data.length ** 2",
     "divided by all pairs"),
    ("high === low ? 0.5 : Number(high > low)",
     f"({HALF}(high) === {HALF}(low) ? 0.5 : Number(high > low))",
     "scores compared in float16"),
)

AUPRO = (
    ("return { aupro: area / limit }", "return { aupro: area }", "not divided by the limit"),
    ("y += 1 / (sizes[region] * count)", "y += 1 / (labels.length - sizes[0])",
     "all anomalous pixels count alike, not the regions"),
    ("const end = Math.min(x, limit);", "const end = x;", "area not cut at the limit"),
    ("const end = Math.min(x, limit);", "if (x > limit) return;\n    const end = x;",
     "area up to the last point before the limit, not interpolated"),
    ("area += ((end - pointX) * (pointY + endY)) / 2", "area += (end - pointX) * endY",
     "step function instead of trapezoids"),
    ("area += ((end - pointX) * (pointY + endY)) / 2", "area += (end - pointX) * pointY",
     "left-hand steps instead of trapezoids"),
    ("if (scores[falling[rank + 1]] === scores[pixel]) return;", "",
     "a point for every pixel, ties in order of the pixels"),
    ("const x = foundNormal / sizes[0];", "const x = foundNormal / labels.length;",
     "false positive rate over all pixels"),
    ("(scores[a] < scores[b]) - (scores[a] > scores[b])",
     "(scores[a] > scores[b]) - (scores[a] < scores[b])", "pixels in ascending order"),
    ("each([3, 3], (i, j) => {", "each([3, 3], (i, j) => {\n        if ((i + j) % 2 === 0) return;",
     "4-connectivity instead of 8"),
    ("if (region === 0) foundNormal += 1;\n    else y",
     "foundNormal += region === 0;\n    if (region > 1) y",
     "first region left out"),
)

ENSEMBLE = (
    ("tile({ images: normalise({ images }).images, grid }).tiles",
     "normalise({ images: tile({ images, grid }).tiles }).images",
     "tiles cut (and padded) before normalising"),
    ("smoothing({ maps: merged, grid, width, sigma }).maps", "merged", "smoothing forgotten"),
    ("smoothing({ maps: merged, grid, width, sigma }).maps", "blur(merged, sigma)",
     "whole map blurred, not only the seams"),
    ("padimParameters({ embedding: embed(images) })",
     "padimParameters({ embedding: embed(part(part(normalTiles, 0), 0)) })",
     "the first location's model used for all tiles"),
    ("part(part(testTiles, i), j)", "part(part(testTiles, i), i)",
     "test tiles of another column than the model's"),
    ("stack(parts(row).map(largest))", "stack(parts(row).map((m) => largest(blur(m, 4))))",
     "score of a map blurred twice"),
    ("total(products) / (N - 1)", "total(products) / N", "biased covariance"),
    ("channels }).embedding",
     "channels: array([6], [0, 1, 2, 3, 4, 5]) }).embedding",
     "first channels instead of the chosen ones"),
    (PRODUCT, f"out.data[o] += {BF16}(x.data[i]) * {BF16}(weights.data[k])",
     "convolutions in bfloat16"),
    ("return { tile_maps: tileMaps, tile_scores: tileScores, map, score: mean }",
     "return { tile_maps: tileMaps, tile_scores: tileScores, map, score: largest(map) }",
     "score is the largest value of the map, not the tiles' mean"),
    (INSIDE, INSIDE.replace("if (row < H && column < W) ", "").replace(
        "row * W + column", "mirror(row, H) * W + mirror(column, W)"),
     "reflect padding of tiles"),
)

STEM = (
    (KERNEL, "((d * C + c) * side + side - 1 - dy) * side + side - 1 - dx",
     "kernels flipped (true convolution)"),
    ("2, -Infinity, Math.max", "2, 0, (a, b) => a + b / 9", "average instead of max pooling"),
    ("const row = y * stride + dy - 1;", "const row = y * stride + dy;",
     "max pooling without padding at the top"),
    ("pool(relu(normalised), 2", "pool(normalised, 2", "ReLU before the pooling missing"),
    (DEVIATION, "const deviation = Math.sqrt(variance)", "batch norm's epsilon missing"),
    (WINDOW, WINDOW.replace("dy - padding", "dy - " + SAME.format(n="h", N="H")).replace(
        "dx - padding", "dx - " + SAME.format(n="w", N="W")),
     "SAME padding at stride 2 (less before than after)"),
    ("Math.floor((side - 1) / 2)", "Math.floor((side - 1) / 2) - (side === 7)",
     "padding of 2 instead of 3"),
    (NORM, "[bias, weight, runningMean, runningVariance] = parts",
     "batch norm's weight and bias exchanged"),
)

ADAM = (
    ("const g = slope + decay * value[i];",
     "const g = slope; value[i] *= 1 - rate * decay;", "AdamW: decoupled decay"),
    ("const g = slope + decay * value[i];", "const g = slope;", "weight decay forgotten"),
    ("first[i] = beta1 * first[i] + (1 - beta1) * g",
     "first[i] = (1 - beta1) * first[i] + beta1 * g",
     "momentum reversed in Adam's first moment"),
    ("first[i] = beta1 * first[i] + (1 - beta1) * g", "first[i] = beta1 * first[i] + g",
     "first moment without dampening (as SGD's momentum)"),
    ("(first[i] / (1 - beta1 ** t))", "first[i]", "bias correction of the first moment missing"),
    ("(second[i] / (1 - beta2 ** t))", "(second[i] / (1 - beta2 ** t) + epsilon)",
     "epsilon inside the square root as well"),
    ("(deviation + epsilon)", "(deviation + 1e-7)", "epsilon 1e-7 (as in Keras)"),
    ("(gradients).map((slopes, k) => {", "(gradients).map((slopes, k) => {\n    k -= 1;",
     "step number one too small in the bias correction"),
    ("Math.sqrt(second[i] /", "(second[i] /", "square root missing"),
)

FASTFLOW_LOSS = (
    ("0.5 * dot(data, data) - logDet", "0.5 * dot(data, data) + logDet", "sign of log_det"),
    ("0.5 * dot(data, data) - logDet", "dot(data, data) - logDet", "factor one half missing"),
    ("0.5 * dot(data, data) - logDet", "(0.5 * dot(data, data)) / data.length - logDet",
     "mean instead of sum over the numbers of z"),
    ("0.5 * dot(data, data) - logDet.data[n]",
     "(0.5 * dot(data, data) - logDet.data[n]) / data.length",
     "loss per number instead of per image"),
    ("0.5 * dot(data, data) - logDet",
     "0.5 * dot(data, data) + 0.5 * data.length * Math.log(2 * Math.PI) - logDet",
     "constant of the normal density added"),
)

RD_LOSS = (
    ("result.positions += average(differences(layer, decoded))",
     "result.positions += total(differences(layer, decoded))",
     "sum instead of mean over positions"),
    ("result.positions += average(differences(layer, decoded))",
     "result.positions += average(differences(layer, decoded)) / 3",
     "mean instead of sum of the layers"),
    ("map(({ cosine }) => 1 - cosine)", "map(({ cosine }) => -cosine)",
     "1 missing: minus the cosine"),
    ("result.flattened += average(differences(flat(layer), flat(decoded)))",
     "result.flattened += average(differences(layer, decoded))",
     "cosine at each position where it should be of the whole layer"),
    ("result.flattened += average(differences(flat(layer), flat(decoded)))",
     "result.flattened += average(differences(flat({ ...layer, shape: [1] }), "
     "flat({ ...decoded, shape: [1] })))", "one cosine for the whole batch"),
    ("Math.max(Math.sqrt(dot(x, x)), 1e-8)", "Math.sqrt(dot(x, x)) + 1e-2",
     "length with a large epsilon added"),
)

UNTILE_FEATURES = (
    ("Math.ceil(side / factor)", "Math.ceil(side / 4)", "factor fixed at 4"),
    ("grid.data.map((side) => Math.ceil(side / factor))",
     "grid.data.map((side, k) => (k < 4 ? Math.ceil(side / factor) : side))",
     "strides not divided by the factor"),
    ("map.data[i] = sum / covering[i % (H * W)]", "map.data[i] = sum", "sum instead of mean"),
    ("map.data[n * H * W + pixel] += maps", "map.data[n * H * W + pixel] = maps",
     "last tile wins in overlaps"),
    ("visit(i * columns + j, y", "visit(j * rows + i, y", "tiles numbered column by column"),
)

BY_STAGE = {
    "resize": RESIZE, "resize_mask": RESIZE_MASK, "normalise": NORMALISE, "tile": TILE,
    "stem": STEM, "backbone": BACKBONE,
    "padim.embedding": PADIM_EMBEDDING, "padim.parameters": PADIM_PARAMETERS,
    "padim.map": PADIM_MAP, "padim.score": PADIM_SCORE,
    "patchcore.embedding": PATCHCORE_EMBEDDING, "patchcore.parameters": PATCHCORE_PARAMETERS,
    "patchcore.map": PATCHCORE_MAP, "patchcore.score": PATCHCORE_SCORE,
    "adam": ADAM, "fastflow.embedding": FASTFLOW_EMBEDDING, "fastflow.loss": FASTFLOW_LOSS,
    "fastflow.parameters": FASTFLOW_PARAMETERS, "fastflow.map": FASTFLOW_MAP,
    "fastflow.score": FASTFLOW_SCORE,
    "reverse_distillation.embedding": RD_EMBEDDING, "reverse_distillation.loss": RD_LOSS,
    "reverse_distillation.parameters": RD_PARAMETERS, "reverse_distillation.map": RD_MAP,
    "reverse_distillation.score": RD_SCORE,
    "untile": UNTILE, "untile_features": UNTILE_FEATURES, "mean_score": MEAN_SCORE,
    "seam_mask": SEAM_MASK, "smoothing": SMOOTHING, "threshold": THRESHOLD,
    "normalisation": NORMALISATION, "regions": REGIONS, "auroc": AUROC, "aupro": AUPRO,
    "ensemble": ENSEMBLE,
}
# Planted, but no case shows it: (stage, old text, new text, kind and the input that would show it).
BUGS = tuple((stage, *row) for stage, rows in BY_STAGE.items() for row in rows)


def cause_of(number, port=PORT):
    """What the checker says of a port with this mistake, 1 for the first; "" where all agrees."""
    stage, old, new, _ = BUGS[number - 1]
    source = port.read_text("utf-8")
    if source.count(old) != 1:
        raise SystemExit(f"{port} has {source.count(old)} times: {old}")
    with tempfile.TemporaryDirectory() as folder:
        wrong, out = Path(folder) / "port.js", Path(folder) / "out"
        wrong.write_text(source.replace(old, new), "utf-8")
        subprocess.run(["node", wrong, REFERENCE, out, stage], check=True, timeout=60)
        (result,), _ = check(out, Bundle(REFERENCE), STAGES, [stage])
    return "" if result.ok else (result.causes or ["no cause"])[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument("--port", type=Path, default=PORT)
    args = parser.parse_args()
    print("| | stage | planted | likely cause |\n|---|---|---|---|")
    for number in args.numbers or range(1, len(BUGS) + 1):
        stage, _, _, kind = BUGS[number - 1]
        print(f"| {number} | {stage} | {kind} | {cause_of(number, args.port)} |", flush=True)


if __name__ == "__main__":
    main()
