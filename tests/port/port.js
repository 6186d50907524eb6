'use strict';
// The stages of a golden bundle in JavaScript, from FORMAT.md alone, but for draws.
//
//     node port.js                        prints the names of the stages
//     node port.js BUNDLE OUT [STAGE...]  writes OUT/<stage>/<case>.out.<name>.npy
//
// Every number is computed in float64. An array is {shape, kind, data}: data in C order.

const fs = require('fs');
const path = require('path');
const zlib = require('zlib');

// ---- Arrays and their files ----

const KINDS = {
  '|b1': Uint8Array,
  '|u1': Uint8Array,
  '<i4': Int32Array,
  '<i8': BigInt64Array,
  '<f4': Float32Array,
  '<f8': Float64Array,
};

const product = (numbers) => numbers.reduce((a, b) => a * b, 1);
const total = (numbers) => numbers.reduce((a, b) => a + b, 0);
const average = (numbers) => total(numbers) / numbers.length;
const dot = (a, b) => total(a.map((x, i) => x * b[i]));

function array(shape, values = null, kind = '<f8') {
  return { shape, kind, data: values ? Float64Array.from(values, Number) : zeros(shape) };
}

const zeros = (shape) => new Float64Array(product(shape));

function readNpy(file) {
  const bytes = fs.readFileSync(file);
  const start = 10 + bytes.readUInt16LE(8);
  const header = bytes.toString('latin1', 10, start);
  const kind = /'descr': '(...)'/.exec(header)[1];
  const shape = (/'shape': \((.*?)\)/.exec(header)[1].match(/\d+/g) || []).map(Number);
  const numbers = bytes.buffer.slice(bytes.byteOffset + start, bytes.byteOffset + bytes.length);
  return array(shape, new KINDS[kind](numbers), kind);
}

function writeNpy(file, { shape, kind, data }) {
  const sides = shape.map((side) => `${side},`).join(' ');
  const header = `{'descr': '${kind}', 'fortran_order': False, 'shape': (${sides}), }`;
  const length = 64 * Math.ceil((10 + header.length + 1) / 64) - 10;
  const head = Buffer.from(`\x93NUMPY\x01\x00..${header.padEnd(length - 1)}\n`, 'latin1');
  head.writeUInt16LE(length, 8);
  const numbers = KINDS[kind].from(kind === '<i8' ? Array.from(data, BigInt) : data);
  fs.writeFileSync(file, Buffer.concat([head, Buffer.from(numbers.buffer)]));
}

// Part k along the first axis; it shares its numbers (and gradients) with the whole.
function part(whole, k) {
  const shape = whole.shape.slice(1);
  const start = k * product(shape);
  const end = start + product(shape);
  const view = { shape, kind: whole.kind, data: whole.data.subarray(start, end) };
  if (whole.grad) view.grad = whole.grad.subarray(start, end);
  return view;
}

const parts = (whole) => Array.from({ length: whole.shape[0] }, (_, k) => part(whole, k));

function stack(pieces) {
  const values = pieces.flatMap(({ data }) => [...data]);
  return array([pieces.length, ...pieces[0].shape], values, pieces[0].kind);
}

// The last two axes are height and width; all others count pictures.
function plane(maps) {
  const [h, w] = maps.shape.slice(-2);
  return { h, w, count: maps.data.length / (h * w), leading: maps.shape.slice(0, -2) };
}

// Calls visit(i, j, ...) for all places of an array with these sides, in C order.
function each([side, ...rest], visit) {
  for (let i = 0; i < side; i++) {
    if (rest.length === 0) visit(i);
    else each(rest, (...more) => visit(i, ...more));
  }
}

// The vectors over channels of x (N, C, h, w): for image n and position p that of n h w + p.
function vectors(x) {
  const { h, w } = plane(x);
  return parts(x).flatMap((image) => {
    const channels = parts(image).map(({ data }) => data);
    return Array.from({ length: h * w }, (_, p) => channels.map((channel) => channel[p]));
  });
}

// ---- Positions, enlarging and blurring ----

// Where place i of `to` lies on an axis of `from` places.
const nearest = (i, from, to) => Math.floor((i * from) / to);
const centres = (i, from, to) => Math.max(((i + 0.5) * from) / to - 0.5, 0);
const corners = (i, from, to) => (to === 1 ? 0 : (i * (from - 1)) / (to - 1));

function enlarge(maps, [H, W], position) {
  const { h, w, count, leading } = plane(maps);
  const out = array([...leading, H, W], null, maps.kind);
  each([H, W], (y, x) => {
    const [v, u] = [position(y, h, H), position(x, w, W)];
    const [top, left] = [Math.floor(v), Math.floor(u)];
    const [bottom, right] = [Math.min(top + 1, h - 1), Math.min(left + 1, w - 1)];
    const [down, across] = [v - top, u - left];
    for (let n = 0; n < count; n++) {
      const at = (row, column) => maps.data[(n * h + row) * w + column];
      const above = at(top, left) * (1 - across) + at(top, right) * across;
      const below = at(bottom, left) * (1 - across) + at(bottom, right) * across;
      out.data[(n * H + y) * W + x] = above * (1 - down) + below * down;
    }
  });
  return out;
}

function mirror(k, n) {
  const period = Math.max(2 * n - 2, 1);
  const inside = Math.abs(k) % period;
  return Math.min(inside, period - inside);
}

function gaussian(sigma) {
  const radius = Math.trunc(4 * sigma + 0.5);
  const places = Array.from({ length: 2 * radius + 1 }, (_, i) => i - radius);
  const weights = places.map((k) => Math.exp((-k * k) / (2 * sigma * sigma)));
  return weights.map((weight) => weight / total(weights));
}

// Down the columns, then along the rows; each pass is rounded to the kind of the maps.
function blur(maps, sigma) {
  const { h, w, count } = plane(maps);
  const weights = gaussian(sigma);
  const radius = (weights.length - 1) / 2;
  const rounded = maps.kind === '<f4' ? Math.fround : Number;
  const pass = (from, mirrored) => {
    const out = [];
    each([count, h, w], (n, y, x) => {
      const at = (i) => from[n * h * w + mirrored(y, x, i - radius)];
      out.push(rounded(total(weights.map((weight, i) => weight * at(i)))));
    });
    return out;
  };
  const columns = pass(maps.data, (y, x, k) => mirror(y + k, h) * w + x);
  const rows = pass(columns, (y, x, k) => y * w + mirror(x + k, w));
  return array(maps.shape, rows, maps.kind);
}

function largest(maps) {
  const values = parts(maps).map(({ data }) => data.reduce((a, b) => Math.max(a, b)));
  return array([maps.shape[0]], values, maps.kind);
}

// ---- Image files ----

// Undoes the filters of a PNG's rows: every byte was stored less a guess from its neighbours.
function unfilter(bytes, rowLength, step) {
  const rows = [];
  let above = new Uint8Array(rowLength);
  for (let start = 0; start < bytes.length; start += rowLength + 1) {
    const row = new Uint8Array(rowLength);
    for (let x = 0; x < rowLength; x++) {
      const a = x < step ? 0 : row[x - step];
      const b = above[x];
      const c = x < step ? 0 : above[x - step];
      const [toA, toB, toC] = [a, b, c].map((byte) => Math.abs(a + b - c - byte));
      const nearestByte = toA <= toB && toA <= toC ? a : toB <= toC ? b : c;
      const guess = [0, a, b, (a + b) >> 1, nearestByte][bytes[start]];
      row[x] = bytes[start + 1 + x] + guess;
    }
    rows.push(row);
    above = row;
  }
  return rows;
}

// The pixels of a PNG with 8 or 16 bits a channel, not interlaced: {w, h, pixel(y, x), exif}.
function readPng(file) {
  const chunks = { IDAT: [] };
  for (let at = 8; at < file.length; at += 12 + file.readUInt32BE(at)) {
    const type = file.toString('latin1', at + 4, at + 8);
    const body = file.subarray(at + 8, at + 8 + file.readUInt32BE(at));
    if (type === 'IDAT') chunks.IDAT.push(body);
    else chunks[type] = body;
  }
  const w = chunks.IHDR.readUInt32BE(0);
  const h = chunks.IHDR.readUInt32BE(4);
  const [bits, colour, , , interlaced] = chunks.IHDR.subarray(8);
  if (bits < 8 || interlaced) throw new Error('a PNG of less than 8 bits, or interlaced');
  const channels = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }[colour];
  const step = (channels * bits) / 8;
  const rows = unfilter(zlib.inflateSync(Buffer.concat(chunks.IDAT)), w * step, step);
  const byte = (y, x, c) => {
    const at = x * step + (c * bits) / 8;
    if (bits === 8 || channels > 2) return rows[y][at];
    return Math.floor((rows[y][at] * 256 + rows[y][at + 1] + 128) / 257);
  };
  const pixel = (y, x) => {
    const first = byte(y, x, 0);
    if (colour === 3) return [...chunks.PLTE.subarray(3 * first, 3 * first + 3)];
    return channels < 3 ? [first, first, first] : [first, byte(y, x, 1), byte(y, x, 2)];
  };
  return { w, h, pixel, exif: chunks.eXIf };
}

// The orientation in a block of EXIF data, 1 where there is none.
function orientation(exif) {
  if (!exif) return 1;
  const little = exif[0] === 0x49;
  const short = (at) => (little ? exif.readUInt16LE(at) : exif.readUInt16BE(at));
  const start = little ? exif.readUInt32LE(4) : exif.readUInt32BE(4);
  for (let entry = 0; entry < short(start); entry++) {
    const at = start + 2 + 12 * entry;
    if (short(at) === 0x0112) return short(at + 8);
  }
  return 1;
}

// The order in which a JPEG stores the 8 x 8 frequencies of a block: along its diagonals.
function zigzag() {
  const places = [...Array(64).keys()];
  const diagonal = (i) => (i >> 3) + (i & 7);
  const along = (i) => (diagonal(i) % 2 ? i >> 3 : i & 7);
  return places.sort((i, j) => diagonal(i) - diagonal(j) || along(i) - along(j));
}

function blockPixels(frequencies) {
  const wave = (x, u) => (u ? 1 : Math.SQRT1_2) * Math.cos(((2 * x + 1) * u * Math.PI) / 16);
  return frequencies.map((_, i) => {
    const waves = frequencies.map((f, k) => f * wave(i >> 3, k >> 3) * wave(i & 7, k & 7));
    return Math.round(total(waves) / 4 + 128);
  });
}

// A table of a JPEG's words, {"number of bits, bits": symbol}.
function words(body) {
  const table = {};
  const symbols = [...body.subarray(17)];
  let code = 0;
  for (let length = 1; length <= 16; length++) {
    for (const symbol of symbols.splice(0, body[length])) {
      table[`${length},${code}`] = symbol;
      code += 1;
    }
    code *= 2;
  }
  return table;
}

// The pixels of a baseline JPEG without subsampled colours or restarts: {w, h, pixel, exif}.
function readJpeg(file) {
  const [scales, tables] = [{}, {}];
  let [at, frame, exif] = [2, null, null];
  while (file[at + 1] !== 0xda) {
    let body = file.subarray(at + 4, at + 2 + file.readUInt16BE(at + 2));
    if (file[at + 1] === 0xe1) exif = body.subarray(6);
    if (file[at + 1] === 0xc0) frame = body;
    while (file[at + 1] === 0xdb && body.length > 0) {
      scales[body[0]] = body.subarray(1, 65);
      body = body.subarray(65);
    }
    while (file[at + 1] === 0xc4 && body.length > 0) {
      tables[body[0]] = words(body);
      body = body.subarray(17 + total(body.subarray(1, 17)));
    }
    at += 2 + file.readUInt16BE(at + 2);
  }
  const scan = file.subarray(at + 4);
  at += 2 + file.readUInt16BE(at + 2);
  let left = 0;
  const bit = () => {
    if (left === 0) left = 8;
    left -= 1;
    const value = (file[at] >> left) & 1;
    if (left === 0) at += file[at] === 0xff ? 2 : 1;
    return value;
  };
  const bits = (n) => Array.from({ length: n }, bit).reduce((sum, b) => 2 * sum + b, 0);
  const word = (table) => {
    let [length, code] = [0, 0];
    while (!(`${length},${code}` in table)) {
      code = 2 * code + bit();
      length += 1;
    }
    return table[`${length},${code}`];
  };
  const signed = (n) => {
    const value = bits(n);
    return n > 0 && value < 2 ** (n - 1) ? value - 2 ** n + 1 : value;
  };
  const [h, w, count] = [frame.readUInt16BE(1), frame.readUInt16BE(3), frame[5]];
  const sampled = Array.from({ length: count }, (_, c) => frame[7 + 3 * c]);
  if (count === 3 && sampled.some((s) => s !== 0x11)) throw new Error('a JPEG with subsampling');
  const order = zigzag();
  const constants = [0, 0, 0];
  const across = Math.ceil(w / 8);
  const blocks = [];
  while (blocks.length < across * Math.ceil(h / 8)) {
    const channels = [];
    for (let c = 0; c < count; c++) {
      const scale = scales[frame[8 + 3 * c]];
      const frequencies = new Array(64).fill(0);
      constants[c] += signed(word(tables[scan[2 + 2 * c] >> 4]));
      frequencies[0] = constants[c] * scale[0];
      for (let k = 1; k < 64; k++) {
        const symbol = word(tables[16 + (scan[2 + 2 * c] & 15)]);
        if (symbol === 0) break;
        k += symbol >> 4;
        frequencies[order[k]] = signed(symbol & 15) * scale[k];
      }
      channels.push(blockPixels(frequencies));
    }
    blocks.push(channels);
  }
  const clip = (level) => Math.min(Math.max(Math.round(level), 0), 255);
  const pixel = (y, x) => {
    const channels = blocks[(y >> 3) * across + (x >> 3)];
    const [Y, Cb, Cr] = channels.map((channel) => channel[(y & 7) * 8 + (x & 7)]);
    if (count === 1) return [Y, Y, Y].map(clip);
    const red = Y + 1.402 * (Cr - 128);
    const green = Y - 0.344136 * (Cb - 128) - 0.714136 * (Cr - 128);
    const blue = Y + 1.772 * (Cb - 128);
    return [red, green, blue].map(clip);
  };
  return { w, h, pixel, exif };
}

function decode({ image }) {
  const { w, h, pixel, exif } = image[0] === 0xff ? readJpeg(image) : readPng(image);
  const turn = orientation(exif);
  const [H, W] = turn > 4 ? [w, h] : [h, w];
  const pixels = [];
  each([H, W], (y, x) => {
    let [row, column] = turn > 4 ? [x, y] : [y, x];
    if ([3, 4, 6, 7].includes(turn)) row = h - 1 - row;
    if ([2, 3, 7, 8].includes(turn)) column = w - 1 - column;
    pixels.push(...pixel(row, column));
  });
  return { image: array([H, W, 3], pixels, '|u1') };
}

// ---- Before the models ----

function toEven(x) {
  const nearby = Math.round(x);
  return nearby - x === 0.5 && nearby % 2 !== 0 ? nearby - 1 : nearby;
}

// The two pixels of n between which pixel x of m lies, and their weights.
function between(x, n, m, clipWeights) {
  const scale = 1 / (m / n);
  const position = Math.fround((x + 0.5) * scale - 0.5);
  const i = Math.floor(position);
  let f = Math.fround(position - i);
  if (clipWeights && (i < 0 || i >= n - 1)) f = 0;
  const clip = (k) => Math.min(Math.max(k, 0), n - 1);
  const first = toEven(2048 * Math.fround(1 - f));
  const second = toEven(2048 * f);
  return { i: clip(i), j: clip(i + 1), first, second };
}

function resize({ image, size }) {
  const [h, w] = image.shape;
  const [H, W] = size.data;
  const out = array([H, W, 3], null, '|u1');
  each([H, W, 3], (y, x, c) => {
    const row = between(y, h, H, false);
    const column = between(x, w, W, true);
    const at = (j, i) => image.data[(j * w + i) * 3 + c];
    const along = (j) => at(j, column.i) * column.first + at(j, column.j) * column.second;
    const upper = (row.first * (along(row.i) >> 4)) >> 16;
    const lower = (row.second * (along(row.j) >> 4)) >> 16;
    out.data[(y * W + x) * 3 + c] = (upper + lower + 2) >> 2;
  });
  return { image: out };
}

const resizeMask = ({ mask, size }) => ({ mask: enlarge(mask, size.data, nearest) });

function normalise({ images }) {
  const means = [0.485, 0.456, 0.406];
  const deviations = [0.229, 0.224, 0.225];
  const { h, w } = plane(images);
  const values = images.data.map((x, i) => {
    const c = Math.floor(i / (h * w)) % 3;
    return (x / 255 - means[c]) / deviations[c];
  });
  return { images: array(images.shape, values) };
}

// Where tiles start; calls visit(tile, its pixel, the image's pixel) for all inside the image.
function everyTile([H, W, h, w, down, across], visit) {
  const rows = Math.ceil((H - h) / down) + 1;
  const columns = Math.ceil((W - w) / across) + 1;
  const tops = Array.from({ length: rows }, (_, i) => i * down);
  const lefts = Array.from({ length: columns }, (_, j) => j * across);
  each([rows, columns, h, w], (i, j, y, x) => {
    const [row, column] = [tops[i] + y, lefts[j] + x];
    if (row < H && column < W) visit(i * columns + j, y * w + x, row * W + column);
  });
  return { rows, columns, tops, lefts };
}

function tile({ images, grid }) {
  const [H, W, h, w] = grid.data;
  const [N, C] = images.shape;
  const { rows, columns } = everyTile(grid.data, () => {});
  const tiles = array([rows, columns, N, C, h, w], null, images.kind);
  everyTile(grid.data, (k, inside, pixel) => {
    for (let n = 0; n < N * C; n++) {
      tiles.data[(k * N * C + n) * h * w + inside] = images.data[n * H * W + pixel];
    }
  });
  return { tiles };
}

// ---- Layers of networks, with their gradients ----

// While a loss is computed for training, every layer leaves here how it passes gradients back.
let tape = null;

const record = (step) => tape && tape.push(step);

const gradient = (x) => (x.grad ??= zeros(x.shape));

// Calls visit(i, o, k) for every product small[o] += large[i] * weights[k] of a convolution.
function everyProduct(large, small, weights, stride, visit) {
  const [, C, H, W] = large.shape;
  const [N, D, h, w] = small.shape;
  const side = weights.shape[3];
  const padding = Math.floor((side - 1) / 2);
  each([N, D, C, h, w], (n, d, c, y, x) => {
    const o = ((n * D + d) * h + y) * w + x;
    for (let dy = 0; dy < side; dy++) {
      const row = y * stride + dy - padding;
      if (row < 0 || row >= H) continue;
      for (let dx = 0; dx < side; dx++) {
        const column = x * stride + dx - padding;
        if (column < 0 || column >= W) continue;
        const i = ((n * C + c) * H + row) * W + column;
        const k = ((d * C + c) * side + dy) * side + dx;
        visit(i, o, k);
      }
    }
  });
}

// With `up` transposed, 2 x 2 with stride 2: the products are those of a convolution from out to x.
function convolution(x, weights, stride, { bias, up } = {}) {
  const [N, , H, W] = x.shape;
  const [D, C] = weights.shape;
  const [h, w] = [H, W].map((side) => Math.ceil(side / stride));
  const out = array(up ? [N, C, 2 * H, 2 * W] : [N, D, h, w]);
  const products = (visit) => {
    if (up) everyProduct(out, x, weights, 2, (o, i, k) => visit(i, o, k));
    else everyProduct(x, out, weights, stride, visit);
  };
  const channel = (o) => Math.floor(o / (h * w)) % D;
  if (bias) out.data.forEach((_, o) => { out.data[o] = bias.data[channel(o)]; });
  products((i, o, k) => {
    out.data[o] += x.data[i] * weights.data[k];
  });
  record(() => {
    const [dx, dout, dweights] = [x, out, weights].map(gradient);
    products((i, o, k) => {
      dx[i] += dout[o] * weights.data[k];
      dweights[k] += dout[o] * x.data[i];
    });
    if (bias) dout.forEach((slope, o) => { gradient(bias)[channel(o)] += slope; });
  });
  return out;
}

// With the running statistics, or, in training, with the batch's, which move the running ones.
function batchNorm(x, parameters) {
  const [N, C, H, W] = x.shape;
  const count = N * H * W;
  const [weight, bias, runningMean, runningVariance] = parts(parameters).map((row) => row.data);
  const out = array(x.shape);
  for (let c = 0; c < C; c++) {
    const own = [];
    each([N, H * W], (n, p) => own.push((n * C + c) * H * W + p));
    let [mean, variance] = [runningMean[c], runningVariance[c]];
    if (tape) {
      mean = average(own.map((i) => x.data[i]));
      variance = average(own.map((i) => (x.data[i] - mean) ** 2));
      const unbiased = (variance * count) / (count - 1);
      runningMean[c] += 0.1 * (mean - runningMean[c]);
      runningVariance[c] += 0.1 * (unbiased - runningVariance[c]);
    }
    const deviation = Math.sqrt(variance + 1e-5);
    const unit = (i) => (x.data[i] - mean) / deviation;
    for (const i of own) out.data[i] = unit(i) * weight[c] + bias[c];
    record(() => {
      const [dx, dout, dparameters] = [x, out, parameters].map(gradient);
      const dbias = total(own.map((i) => dout[i]));
      const dweight = total(own.map((i) => dout[i] * unit(i)));
      for (const i of own) {
        const rest = dout[i] - dbias / count - (unit(i) * dweight) / count;
        dx[i] += (rest * weight[c]) / deviation;
      }
      dparameters[c] += dweight;
      dparameters[C + c] += dbias;
    });
  }
  return out;
}

// The sum of the terms, 0 where it is negative.
function relu(...terms) {
  const sums = terms[0].data.map((_, i) => total(terms.map(({ data }) => data[i])));
  const out = array(terms[0].shape, sums.map((sum) => Math.max(sum, 0)));
  record(() => {
    for (const term of terms) {
      gradient(out).forEach((slope, i) => { gradient(term)[i] += sums[i] > 0 ? slope : 0; });
    }
  });
  return out;
}

// Copies x (N, c, h, w) to channel `first` of `out` and the following, as far as there is room.
function copy(x, out, first) {
  const shared = x.shape.map((side, axis) => Math.min(side, out.shape[axis]));
  const place = ([, C, H, W], n, c, y, z) => ((n * C + c) * H + y) * W + z;
  const pairs = [];
  each(shared, (n, c, y, z) => {
    pairs.push([place(x.shape, n, c, y, z), place(out.shape, n, first + c, y, z)]);
  });
  for (const [i, o] of pairs) out.data[o] = x.data[i];
  record(() => {
    for (const [i, o] of pairs) gradient(x)[i] += gradient(out)[o];
  });
  return out;
}

// The first channels, rows and columns of x.
const crop = (x, sides) => copy(x, array([x.shape[0], ...sides]), 0);

function concatenate(layers) {
  const [N, , h, w] = layers[0].shape;
  const channels = (pieces) => total(pieces.map(({ shape }) => shape[1]));
  const out = array([N, channels(layers), h, w]);
  layers.forEach((x, k) => copy(x, out, channels(layers.slice(0, k))));
  return out;
}

// Combines the 3 x 3 numbers around every stride-th pixel, as far as they are inside the map.
function pool(x, stride, start, combine) {
  const { h: H, w: W, count, leading } = plane(x);
  const [h, w] = [H, W].map((side) => Math.ceil(side / stride));
  const out = array([...leading, h, w]);
  out.data.fill(start);
  each([count, h, w, 3, 3], (n, y, z, dy, dz) => {
    const row = y * stride + dy - 1;
    const column = z * stride + dz - 1;
    if (row < 0 || row >= H || column < 0 || column >= W) return;
    const o = (n * h + y) * w + z;
    out.data[o] = combine(out.data[o], x.data[(n * H + row) * W + column]);
  });
  return out;
}

// A residual block; `up` doubles the size instead of dividing it by the stride.
function block(x, weights, name, stride, up = false) {
  const change = (tensor) => convolution(x, tensor, stride, { up });
  const w = (rest) => weights[`${name}.${rest}`];
  let y = relu(batchNorm(change(w('conv1')), w('bn1')));
  y = batchNorm(convolution(y, w('conv2'), 1), w('bn2'));
  const side = w('downsample.0') ? 'downsample' : 'shortcut';
  if (!w(`${side}.0`)) return relu(y, x);
  return relu(y, batchNorm(change(w(`${side}.0`)), w(`${side}.1`)));
}

function stem({ images, weights }) {
  const convolved = convolution(images, weights.conv1, 2);
  const normalised = batchNorm(convolved, weights.bn1);
  return { convolved, normalised, pooled: pool(relu(normalised), 2, -Infinity, Math.max) };
}

function backbone(inputs) {
  const { weights } = inputs;
  const layer1 = block(stem(inputs).pooled, weights, 'layer1', 1);
  const layer2 = block(layer1, weights, 'layer2', 2);
  const layer3 = block(layer2, weights, 'layer3', 2);
  return { layer1, layer2, layer3 };
}

// ---- PaDiM ----

const score = ({ map }) => ({ score: largest(map) });

function padimEmbedding({ layer1, layer2, layer3, channels }) {
  const { h, w } = plane(layer1);
  const grown = [layer2, layer3].map((layer) => enlarge(layer, [h, w], nearest));
  const images = parts(concatenate([layer1, ...grown]));
  const chosen = images.map((image) => stack([...channels.data].map((k) => part(image, k))));
  return { embedding: stack(chosen) };
}

// C with C times its transposed = sigma, for a list of rows.
function cholesky(sigma) {
  const C = sigma.map((row) => row.map(() => 0));
  for (let i = 0; i < C.length; i++) {
    for (let j = 0; j <= i; j++) {
      let rest = sigma[i][j];
      for (let k = 0; k < j; k++) rest -= C[i][k] * C[j][k];
      C[i][j] = i === j ? Math.sqrt(rest) : rest / C[j][j];
    }
  }
  return C;
}

function invertLower(C) {
  const inverse = C.map((row) => row.map(() => 0));
  for (let i = 0; i < C.length; i++) {
    for (let j = 0; j <= i; j++) {
      let sum = i === j ? 1 : 0;
      for (let k = j; k < i; k++) sum -= C[i][k] * inverse[k][j];
      inverse[i][j] = sum / C[i][i];
    }
  }
  return inverse;
}

function padimParameters({ embedding }) {
  const [N, D, h, w] = embedding.shape;
  const all = vectors(embedding);
  const means = [];
  const factors = [];
  for (let p = 0; p < h * w; p++) {
    const own = all.filter((_, i) => i % (h * w) === p);
    const mean = own[0].map((_, d) => average(own.map((x) => x[d])));
    const sigma = mean.map((a, i) => mean.map((b, j) => {
      const products = own.map((x) => (x[i] - a) * (x[j] - b));
      return total(products) / (N - 1) + (i === j ? 0.01 : 0);
    }));
    const inverse = invertLower(cholesky(sigma));
    means.push(...mean);
    each([D, D], (i, j) => { if (i <= j) factors.push(inverse[j][i]); });
  }
  const sides = [h * w, (D * (D + 1)) / 2];
  return { mean: array([h * w, D], means), factors: array(sides, factors) };
}

function padimMap({ embedding, mean, factors, size }) {
  const [N, D, h, w] = embedding.shape;
  const values = vectors(embedding).map((x, i) => {
    const own = i % (h * w);
    const factor = part(factors, own).data;
    const centre = part(mean, own).data;
    const image = zeros([D]);
    let k = 0;
    each([D, D], (row, column) => {
      if (row <= column) image[column] += factor[k++] * (x[row] - centre[row]);
    });
    return Math.hypot(...image);
  });
  const distances = array([N, h, w], values);
  return { distances, map: blur(enlarge(distances, size.data, centres), 4) };
}

// ---- PatchCore ----

function patchcoreEmbedding({ layer2, layer3 }) {
  const mean = (layer) => pool(layer, 1, 0, (sum, x) => sum + x / 9);
  const [mean2, mean3] = [layer2, layer3].map(mean);
  const grown = enlarge(mean3, layer2.shape.slice(2), centres);
  return { embedding: concatenate([mean2, grown]) };
}

const distance = (a, b) => Math.hypot(...a.map((x, i) => x - b[i]));

function patchcoreParameters({ patches, projection, first, count, include_first: included }) {
  const rows = parts(projection).map(({ data }) => [...data]);
  const points = parts(patches).map(({ data }) => rows.map((row) => dot(row, data)));
  const chosen = included ? [first] : [];
  const distances = points.map((point) => distance(point, points[first]));
  while (chosen.length < count) {
    const left = [...points.keys()].filter((i) => !chosen.includes(i));
    const farthest = left.reduce((i, j) => (distances[j] > distances[i] ? j : i));
    chosen.push(farthest);
    points.forEach((point, i) => {
      distances[i] = Math.min(distances[i], distance(point, points[farthest]));
    });
  }
  const bank = stack(chosen.map((i) => part(patches, i)));
  return { chosen: array([count], chosen, '<i8'), bank };
}

// For each patch of all images: its vector, its nearest member of the bank, and how far that is.
function nearestInBank(embedding, members) {
  return vectors(embedding).map((x) => {
    const all = members.map((member) => distance(x, member));
    const smallest = Math.min(...all);
    return { x, distance: smallest, member: all.indexOf(smallest) };
  });
}

const membersOf = (bank) => parts(bank).map(({ data }) => [...data]);

function patchcoreMap({ embedding, bank, size }) {
  const [N, , h, w] = embedding.shape;
  const found = nearestInBank(embedding, membersOf(bank));
  const distances = array([N, h, w], found.map((patch) => patch.distance));
  return { distances, map: blur(enlarge(distances, size.data, nearest), 4) };
}

function patchcoreScore({ embedding, bank, n_neighbours: b }) {
  const members = membersOf(bank);
  const scores = parts(embedding).map((image) => {
    const found = nearestInBank(stack([image]), members);
    const { x, member, distance: s } = found.reduce((p, q) => (q.distance > p.distance ? q : p));
    if (b === 1) return s;
    const fromMember = members.map((other) => distance(other, members[member]));
    fromMember[member] = -1;
    const order = [...members.keys()].sort((i, j) => fromMember[i] - fromMember[j]);
    const distances = order.slice(0, b).map((i) => distance(x, members[i]));
    const powers = distances.map((d) => Math.exp(d - distances[0]));
    return (1 - 1 / total(powers)) * s;
  });
  return { score: array([scores.length], scores) };
}

// ---- Adam ----

// Step t: changes the numbers of value, first and second.
function adamStep({ value, gradient: slopes, first, second }, t, settings) {
  const { rate, betas: [beta1, beta2], decay, epsilon = 1e-8 } = settings;
  slopes.forEach((slope, i) => {
    const g = slope + decay * value[i];
    first[i] = beta1 * first[i] + (1 - beta1) * g;
    second[i] = beta2 * second[i] + (1 - beta2) * g ** 2;
    const deviation = Math.sqrt(second[i] / (1 - beta2 ** t));
    value[i] -= (rate * (first[i] / (1 - beta1 ** t))) / (deviation + epsilon);
  });
}

function adam({ value: { data, shape }, gradients, betas, ...settings }) {
  const state = { value: data, first: zeros(shape), second: zeros(shape) };
  const steps = parts(gradients).map((slopes, k) => {
    adamStep({ ...state, gradient: slopes.data }, k + 1, { ...settings, betas: betas.data });
    return Object.values(state).map((numbers) => array(shape, numbers));
  });
  const [values, first, second] = [0, 1, 2].map((k) => stack(steps.map((step) => step[k])));
  return { values, first, second };
}

// What Adam knows of a tensor; of a batch normalisation (4, C) only weight and bias are trained.
function trainable([name, tensor]) {
  const normalises = tensor.shape.length === 2 && tensor.shape[0] === 4;
  const shape = normalises ? [2, tensor.shape[1]] : tensor.shape;
  const own = (numbers) => numbers.subarray(0, product(shape));
  const [value, slopes] = [tensor.data, gradient(tensor)].map(own);
  const moments = { first: zeros(shape), second: zeros(shape) };
  return { name, shape, value, gradient: slopes, ...moments };
}

// Gradients and moments are results only of tensors of at most 4096 numbers.
function train(loss, learned, steps, settings) {
  const results = { loss_before: loss(), ...Object.fromEntries(learned) };
  const tensors = learned.map(trainable);
  for (let t = 1; t <= steps; t++) {
    for (const tensor of tensors) tensor.gradient.fill(0);
    tape = [];
    loss();
    const backwards = tape.reverse();
    tape = null;
    for (const step of backwards) step();
    for (const tensor of tensors) {
      adamStep(tensor, t, settings);
      if (tensor.value.length > 4096) continue;
      for (const kind of ['gradient', 'first', 'second']) {
        results[`${kind}${t}.${tensor.name}`] = array(tensor.shape, tensor[kind]);
      }
    }
  }
  return { ...results, loss_after: loss() };
}

// ---- FastFlow ----

const softplus = (x) => 2 * Math.log1p(Math.exp(x / 2));

function layerNorm(x, weight, bias) {
  const [, C, h, w] = x.shape;
  const unit = parts(x).flatMap((image) => {
    const own = [...image.data];
    const mean = average(own);
    const variance = average(own.map((value) => (value - mean) ** 2));
    return own.map((value) => (value - mean) / Math.sqrt(variance + 1e-5));
  });
  const place = (i) => (i % (h * w)) * C + (Math.floor(i / (h * w)) % C);
  const values = unit.map((value, i) => value * weight.data[place(i)] + bias.data[place(i)]);
  const out = array(x.shape, values);
  record(() => {
    gradient(out).forEach((slope, i) => {
      gradient(weight)[place(i)] += slope * unit[i];
      gradient(bias)[place(i)] += slope;
    });
  });
  return out;
}

// One block after its two convolutions gave `net`; logDet (N,) is added to.
function coupling(y, net, scale, offset, order, logDet) {
  const [N, C, h, w] = y.shape;
  const half = (C / 2) * h * w;
  const out = array(y.shape);
  // Number i of y (image n, channel c) becomes `value`, times g goes to number o.
  const everyNumber = (visit) => each([N, C, h * w], (n, k, p) => {
    const c = order.data[k];
    const i = (n * C + c) * h * w + p;
    const o = (n * C + k) * h * w + p;
    const g = 0.1 * softplus(scale.data[c]);
    const second = c >= C / 2;
    const l = second ? 2 * Math.tanh(0.1 * net.data[i - half]) : 0;
    const b = second ? 0.1 * net.data[i] : 0;
    visit({ n, c, i, o, g, second, l, value: y.data[i] * Math.exp(l) + b });
  });
  everyNumber(({ n, c, o, g, l, value }) => {
    out.data[o] = g * value + offset.data[c];
    logDet.data[n] += l + Math.log(g);
  });
  record(() => {
    const [dout, dlogDet] = [out, logDet].map(gradient);
    const [dy, dnet, dscale, doffset] = [y, net, scale, offset].map(gradient);
    everyNumber(({ n, c, i, o, g, second, l, value }) => {
      const dvalue = dout[o] * g;
      const dg = dout[o] * value + dlogDet[n] / g;
      dscale[c] += (dg * 0.1) / (1 + Math.exp(-scale.data[c] / 2));
      doffset[c] += dout[o];
      dy[i] += dvalue * Math.exp(l);
      if (!second) return;
      const dl = dvalue * y.data[i] * Math.exp(l) + dlogDet[n];
      dnet[i - half] += dl * 0.1 * 2 * (1 - (l / 2) ** 2);
      dnet[i] += dvalue * 0.1;
    });
  });
  return out;
}

// A kernel for every block; where there are small ones, every second block has one of them.
function kernels(large, small) {
  return small ? parts(large).flatMap((kernel, k) => [kernel, part(small, k)]) : parts(large);
}

function flow(layer, weights, name) {
  const w = (rest) => weights[`${name}.${rest}`];
  const [N, C, height, width] = layer.shape;
  let y = layerNorm(layer, w('norm_weight'), w('norm_bias'));
  const logDet = array([N]);
  for (let k = 0; k < 8; k++) {
    const own = (rest) => part(w(rest), k);
    const convolve = (x, conv) => {
      const kernel = kernels(w(`${conv}_weight`), w(`${conv}_weight_1x1`))[k];
      return convolution(x, kernel, 1, { bias: own(`${conv}_bias`) });
    };
    const hidden = relu(convolve(crop(y, [C / 2, height, width]), 'conv1'));
    const net = convolve(hidden, 'conv2');
    y = coupling(y, net, own('global_scale'), own('global_offset'), own('order'), logDet);
  }
  return { z: y, log_det: logDet };
}

function flows({ layer1, layer2, layer3, weights }) {
  return [layer1, layer2, layer3].map((layer, k) => flow(layer, weights, `layer${k + 1}`));
}

function fastflowEmbedding(inputs) {
  const numbered = (own, k) => Object.entries(own).map(([name, x]) => [`${name}${k + 1}`, x]);
  return Object.fromEntries(flows(inputs).flatMap(numbered));
}

function fastflowLoss({ z, log_det: logDet }) {
  const N = z.shape[0];
  record(() => {
    z.data.forEach((number, i) => { gradient(z)[i] += number / N; });
    logDet.data.forEach((_, n) => { gradient(logDet)[n] -= 1 / N; });
  });
  const losses = parts(z).map(({ data }, n) => 0.5 * dot(data, data) - logDet.data[n]);
  return { loss: array([N], losses) };
}

function fastflowParameters(inputs) {
  const loss = () => total(flows(inputs).map((own) => average(fastflowLoss(own).loss.data)));
  const learned = Object.entries(inputs.weights).filter(([name]) => !name.endsWith('.order'));
  return train(loss, learned, inputs.steps, { rate: 0.001, betas: [0.9, 0.999], decay: 1e-5 });
}

function fastflowMap({ z1, z2, z3, size }) {
  const map = array([z1.shape[0], ...size.data]);
  for (const z of [z1, z2, z3]) {
    const [N, C, h, w] = z.shape;
    const likelihoods = vectors(z).map((x) => -Math.exp((-0.5 * dot(x, x)) / C));
    const grown = enlarge(array([N, h, w], likelihoods), size.data, centres);
    grown.data.forEach((number, i) => { map.data[i] += number / 3; });
  }
  return { map };
}

// ---- Reverse Distillation ----

// Only what is returned is cut.
function reverseDistillationEmbedding({ layer1, layer2, layer3, weights }) {
  const w = (rest) => weights[`bottleneck.${rest}`];
  const reduce = (x, kernel, norm) => relu(batchNorm(convolution(x, w(kernel), 2), w(norm)));
  const from1 = reduce(reduce(layer1, 'fuse1.0', 'fuse1.1'), 'fuse1.3', 'fuse1.4');
  const from2 = reduce(layer2, 'fuse2.0', 'fuse2.1');
  let x = concatenate([from1, from2, layer3]);
  x = block(x, weights, 'bottleneck.embed.0', 2);
  x = block(x, weights, 'bottleneck.embed.1', 1);
  const [decoded3, decoded2, decoded1] = [layer3, layer2, layer1].map((layer, k) => {
    const name = `decoder.to_layer${3 - k}`;
    x = block(x, weights, `${name}.0`, 2, true);
    x = block(x, weights, `${name}.1`, 1);
    return crop(x, layer.shape.slice(1));
  });
  return { decoded1, decoded2, decoded3 };
}

// For every position (N, h, w): the cosine over channels and the two lengths.
function cosines(layer, decoded) {
  const others = vectors(decoded);
  return vectors(layer).map((a, i) => {
    const [lengthA, lengthB] = [a, others[i]].map((x) => Math.max(Math.sqrt(dot(x, x)), 1e-8));
    return { cosine: dot(a, others[i]) / (lengthA * lengthB), lengthA, lengthB };
  });
}

const differences = (layer, decoded) => cosines(layer, decoded).map(({ cosine }) => 1 - cosine);

function reverseDistillationLoss(inputs) {
  const flat = ({ shape: [N], data }) => ({ shape: [N, data.length / N, 1, 1], data });
  const result = { positions: 0, flattened: 0 };
  for (const k of [1, 2, 3]) {
    const [layer, decoded] = [inputs[`layer${k}`], inputs[`decoded${k}`]];
    result.positions += average(differences(layer, decoded));
    result.flattened += average(differences(flat(layer), flat(decoded)));
    record(() => {
      const [, C, h, w] = layer.shape;
      const all = cosines(layer, decoded);
      const slopes = gradient(decoded);
      slopes.forEach((_, i) => {
        const position = Math.floor(i / (C * h * w)) * h * w + (i % (h * w));
        const { cosine, lengthA, lengthB } = all[position];
        const along = layer.data[i] / (lengthA * lengthB);
        const across = (cosine * decoded.data[i]) / lengthB ** 2;
        slopes[i] -= (along - across) / all.length;
      });
    });
  }
  return result;
}

function reverseDistillationParameters(inputs) {
  const decoded = () => reverseDistillationEmbedding(inputs);
  const loss = () => reverseDistillationLoss({ ...inputs, ...decoded() }).positions;
  const learned = Object.entries(inputs.weights);
  return train(loss, learned, inputs.steps, { rate: 0.005, betas: [0.5, 0.999], decay: 0 });
}

function reverseDistillationMap({ size, ...layers }) {
  const sides = [layers.layer1.shape[0], ...size.data];
  const [multiplied, added] = [array(sides).data.fill(1), array(sides).data];
  for (const k of [1, 2, 3]) {
    const [N, , h, w] = layers[`layer${k}`].shape;
    const unlike = array([N, h, w], differences(layers[`layer${k}`], layers[`decoded${k}`]));
    enlarge(unlike, size.data, corners).data.forEach((number, i) => {
      multiplied[i] *= number;
      added[i] += number;
    });
  }
  return { map: blur(array(sides, multiplied), 4), map_of_sum: blur(array(sides, added), 4) };
}

// ---- After the models ----

function untile({ maps, grid }) {
  const [H, W, h, w] = grid.data;
  const N = maps.shape[2];
  const map = array([N, H, W], null, maps.kind);
  const covering = zeros([H, W]);
  everyTile(grid.data, (k, inside, pixel) => {
    covering[pixel] += 1;
    for (let n = 0; n < N; n++) {
      map.data[n * H * W + pixel] += maps.data[(k * N + n) * h * w + inside];
    }
  });
  map.data.forEach((sum, i) => { map.data[i] = sum / covering[i % (H * W)]; });
  return { map };
}

function untileFeatures({ features, grid, factor }) {
  const [rows, columns, N, C, ...sides] = features.shape;
  const maps = { ...features, shape: [rows, columns, N * C, ...sides] };
  const smaller = array([6], grid.data.map((side) => Math.ceil(side / factor)));
  const { map } = untile({ maps, grid: smaller });
  return { features: { ...map, shape: [N, C, ...map.shape.slice(1)] } };
}

function meanScore({ scores }) {
  const [rows, columns, N] = scores.shape;
  const score = array([N]);
  scores.data.forEach((value, i) => { score.data[i % N] += value / (rows * columns); });
  return { score };
}

// Whether each of n pixels is near a start or an end, inside the image, of a tile.
function nearBorder(n, starts, side, width) {
  const reach = Math.trunc(width * side);
  const borders = starts.flatMap((start) => [start, start + side]);
  const inside = borders.filter((border) => border > 0 && border < n);
  const near = (pixel) => inside.some((b) => b - reach <= pixel && pixel < b + reach);
  return Array.from({ length: n }, (_, pixel) => near(pixel));
}

function seamMask({ grid, width }) {
  const [H, W, h, w] = grid.data;
  const { tops, lefts } = everyTile(grid.data, () => {});
  const rows = nearBorder(H, tops, h, width);
  const columns = nearBorder(W, lefts, w, width);
  const mask = rows.flatMap((row) => columns.map((column) => row || column));
  return { mask: array([H, W], mask, '|b1') };
}

function smoothing({ maps, grid, width, sigma }) {
  const { mask } = seamMask({ grid, width });
  const blurred = blur(maps, sigma).data;
  const values = maps.data.map((x, i) => (mask.data[i % mask.data.length] ? blurred[i] : x));
  return { maps: array(maps.shape, values, maps.kind) };
}

// Without scores, or with a NaN among them, there is no order.
const unranked = ({ data }) => data.length === 0 || data.some(Number.isNaN);

function threshold({ scores, labels }) {
  if (unranked(scores)) return { threshold: NaN, f1: NaN };
  if (!labels.data.some(Boolean)) return { threshold: Math.max(...scores.data), f1: NaN };
  let best = { threshold: NaN, f1: -1 };
  for (const candidate of [...scores.data].sort((a, b) => a - b)) {
    let [found, wrong] = [0, 0];
    scores.data.forEach((score, i) => {
      if (score >= candidate && labels.data[i] !== 0) found += 1;
      if ((score >= candidate) !== (labels.data[i] !== 0)) wrong += 1;
    });
    const f1 = (2 * found) / (2 * found + wrong);
    if (f1 > best.f1) best = { threshold: candidate, f1 };
  }
  return best;
}

function normalisation({ values, threshold: middle, minimum, maximum }) {
  const range = maximum - minimum;
  const out = values.data.map((x) => {
    const y = range > 0 ? (x - middle) / range + 0.5 : Math.sign(x - middle) / 2 + 0.5;
    return Math.min(Math.max(y, 0), 1);
  });
  return { values: array(values.shape, out) };
}

function regions({ masks }) {
  const [, h, w] = masks.shape;
  const labels = array(masks.shape, null, '<i4');
  const waits = (pixel) => masks.data[pixel] !== 0 && labels.data[pixel] === 0;
  let region = 0;
  masks.data.forEach((_, first) => {
    if (!waits(first)) return;
    region += 1;
    const open = [first];
    while (open.length > 0) {
      const pixel = open.pop();
      labels.data[pixel] = region;
      const x = pixel % w;
      const y = Math.floor(pixel / w) % h;
      each([3, 3], (i, j) => {
        const [row, column] = [y + i - 1, x + j - 1];
        if (row < 0 || row >= h || column < 0 || column >= w) return;
        const neighbour = pixel + (i - 1) * w + (j - 1);
        if (waits(neighbour)) open.push(neighbour);
      });
    }
  });
  return { labels };
}

function auroc({ scores, labels }) {
  if (unranked(scores)) return { auroc: NaN };
  const anomalous = scores.data.filter((_, i) => labels.data[i] !== 0);
  const normal = scores.data.filter((_, i) => labels.data[i] === 0);
  let wins = 0;
  for (const high of anomalous) {
    for (const low of normal) wins += high === low ? 0.5 : Number(high > low);
  }
  return { auroc: wins / (anomalous.length * normal.length) };
}

function aupro({ maps, masks, fpr_limit: limit }) {
  const labels = regions({ masks }).labels.data;
  const count = labels.reduce((a, b) => Math.max(a, b));
  const sizes = new Array(count + 1).fill(0);
  labels.forEach((region) => { sizes[region] += 1; });
  if (count === 0 || sizes[0] === 0 || unranked(maps)) return { aupro: NaN };
  const scores = maps.data;
  const order = (a, b) => (scores[a] < scores[b]) - (scores[a] > scores[b]);
  const falling = [...scores.keys()].sort(order);
  let [y, area, foundNormal, pointX, pointY] = [0, 0, 0, 0, 0];
  falling.forEach((pixel, rank) => {
    const region = labels[pixel];
    if (region === 0) foundNormal += 1;
    else y += 1 / (sizes[region] * count);
    const x = foundNormal / sizes[0];
    if (scores[falling[rank + 1]] === scores[pixel]) return;
    const end = Math.min(x, limit);
    if (end > pointX) {
      const endY = pointY + ((y - pointY) * (end - pointX)) / (x - pointX);
      area += ((end - pointX) * (pointY + endY)) / 2;
    }
    [pointX, pointY] = [x, y];
  });
  return { aupro: area / limit };
}

// ---- All together ----

function ensemble({ train: normal, test, grid, channels, width, sigma, weights }) {
  const [, , h, w] = grid.data;
  const size = array([2], [h, w]);
  const cut = (images) => tile({ images: normalise({ images }).images, grid }).tiles;
  const [normalTiles, testTiles] = [normal, test].map(cut);
  const layersOf = (images) => backbone({ images, weights });
  const embed = (images) => padimEmbedding({ ...layersOf(images), channels }).embedding;
  const rows = parts(normalTiles).map((row, i) => stack(parts(row).map((images, j) => {
    const parameters = padimParameters({ embedding: embed(images) });
    const embedding = embed(part(part(testTiles, i), j));
    return padimMap({ embedding, ...parameters, size }).map;
  })));
  const tileMaps = stack(rows);
  const tileScores = stack(rows.map((row) => stack(parts(row).map(largest))));
  const merged = untile({ maps: tileMaps, grid }).map;
  const map = smoothing({ maps: merged, grid, width, sigma }).maps;
  const mean = meanScore({ scores: tileScores }).score;
  return { tile_maps: tileMaps, tile_scores: tileScores, map, score: mean };
}

const STAGES = {
  decode, resize, resize_mask: resizeMask, normalise, tile, stem, backbone,
  'padim.embedding': padimEmbedding, 'padim.parameters': padimParameters,
  'padim.map': padimMap, 'padim.score': score,
  'patchcore.embedding': patchcoreEmbedding, 'patchcore.parameters': patchcoreParameters,
  'patchcore.map': patchcoreMap, 'patchcore.score': patchcoreScore,
  adam, 'fastflow.embedding': fastflowEmbedding, 'fastflow.loss': fastflowLoss,
  'fastflow.parameters': fastflowParameters, 'fastflow.map': fastflowMap, 'fastflow.score': score,
  'reverse_distillation.embedding': reverseDistillationEmbedding,
  'reverse_distillation.loss': reverseDistillationLoss,
  'reverse_distillation.parameters': reverseDistillationParameters,
  'reverse_distillation.map': reverseDistillationMap, 'reverse_distillation.score': score,
  untile, untile_features: untileFeatures, mean_score: meanScore, seam_mask: seamMask, smoothing,
  threshold, normalisation, regions, auroc, aupro, ensemble,
};

// ---- The bundle ----

function value(bundle, manifest, input) {
  if (input.model) return valuesOf(bundle, manifest, manifest.models[input.model]);
  if ('bytes' in input) return fs.readFileSync(path.join(bundle, input.path));
  const found = input.path
    ? readNpy(path.join(bundle, input.path))
    : array(input.shape, input.values, input.dtype);
  return found.shape.length === 0 ? found.data[0] : found;
}

function valuesOf(bundle, manifest, inputs) {
  const entries = Object.entries(inputs);
  return Object.fromEntries(entries.map(([key, input]) => [key, value(bundle, manifest, input)]));
}

function main([bundle, out, ...chosen]) {
  if (!bundle) return console.log(Object.keys(STAGES).join('\n'));
  const manifest = JSON.parse(fs.readFileSync(path.join(bundle, 'manifest.json'), 'utf8'));
  const unknown = chosen.find((name) => !(name in STAGES));
  if (unknown) throw new Error(`no stage is called ${unknown}`);
  const names = chosen.length > 0 ? chosen : Object.keys(STAGES);
  for (const stage of manifest.stages.filter(({ name }) => names.includes(name))) {
    fs.mkdirSync(path.join(out, stage.name), { recursive: true });
    for (const { name, inputs } of stage.cases) {
      const results = STAGES[stage.name](valuesOf(bundle, manifest, inputs));
      for (const [key, result] of Object.entries(results)) {
        const whole = typeof result === 'number' ? array([], [result]) : result;
        writeNpy(path.join(out, stage.name, `${name}.out.${key}.npy`), whole);
      }
    }
  }
}

main(process.argv.slice(2));
