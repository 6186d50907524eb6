"use strict";
(() => {
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const state = {category: 0, arch: null, setup: null, verdict: "all", defect: "", fade: 50, lines: true,
  order: [], card: null, at: 0};
const make = (tag, name, text) => {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
};

// ---------------------------------------------------------------------------- light, dark
const root = document.documentElement;
const setTheme = (dark) => {
  root.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
};
setTheme(matchMedia("(prefers-color-scheme: dark)").matches);
$("theme").onclick = () => setTheme(root.dataset.theme !== "dark");

// -------------------------------------------------------------------------- summary table
const table = $("results");
let sorted = {column: -1, down: false};
const drawRows = () => {
  const rows = data.summary.rows.slice();
  if (sorted.column >= 0) {
    const key = (row) => row[sorted.column][1];
    const sign = sorted.down ? -1 : 1;
    rows.sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === null || y === null) return (x === null) - (y === null);
      return sign * (typeof x === "number" ? x - y : x < y ? -1 : x > y ? 1 : 0);
    });
  }
  table.tBodies[0].replaceChildren(...rows.map((row) => {
    const line = make("tr");
    row.forEach(([text], k) => line.append(make("td", data.summary.text[k] ? "text" : "", text)));
    return line;
  }));
  [...table.tHead.rows[0].cells].forEach((cell, k) => cell.setAttribute("aria-sort",
    k !== sorted.column ? "none" : sorted.down ? "descending" : "ascending"));
};
{
  const head = make("tr");
  data.summary.headers.forEach((text, k) => {
    const cell = make("th", data.summary.text[k] ? "text" : "");
    const button = make("button", "", text);
    button.type = "button";
    button.onclick = () => {
      const down = sorted.column === k ? !sorted.down : !data.summary.text[k];
      sorted = {column: k, down};
      drawRows();
    };
    cell.scope = "col";
    cell.append(button);
    head.append(cell);
  });
  table.tHead.append(head);
  drawRows();
}

// ------------------------------------------------------------------------------- pictures
// A heat map is a grey JPEG, 128 the threshold, coloured by the SVG filter "heat".
const category = () => data.categories[state.category];
const cells = () => category() ? category().cells[state.arch] || {} : {};
const cell = () => cells()[state.setup];

const picture = (name) => {
  const node = make("img", name);
  node.alt = "";
  return node;
};
const shape = (name, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const key in attributes) node.setAttribute(key, attributes[key]);
  return node;
};
// One image, and over it: grey, which removes its colours, the heat map, the mask, the outlines.
const stage = (image) => {
  const box = make("span", "stage");
  box.style.aspectRatio = image.w + " / " + image.h;
  box.style.setProperty("--ratio", String(image.w / image.h));
  box.lines = shape("svg", {viewBox: "0 0 1 1", preserveAspectRatio: "none"});
  box.append(picture("photo"), box.lines);
  box.firstChild.src = "data:image/jpeg;base64," + image.jpeg;
  return box;
};
const fill = (box, image, one, k) => {
  const path = (name, [height, width, d]) =>
    shape("path", {class: name, d, transform: `scale(${1 / width} ${1 / height})`});
  const truth = [path("line rim truth", image.truth), path("line truth", image.truth)];
  if (!one) {  // the image alone
    box.lines.replaceChildren(...truth);
    return;
  }
  if (!box.heat) {
    box.heat = picture("heat");
    box.lines.before(make("span", "grey"), box.heat);
  }
  box.heat.src = "data:image/jpeg;base64," + one.maps[k];
  const mask = shape("g", {class: "mask"});
  mask.append(shape("rect", {width: 1, height: 1}), path("", one.marks[k]));
  box.lines.replaceChildren(mask, path("line rim", one.marks[k]), path("line", one.marks[k]), ...truth);
};
const scoreOf = (one, k) => "score " + one.scores[k].toPrecision(4) + ", threshold " +
  one.threshold.toPrecision(4);

let cards = [];
const buildCards = () => {
  const one = category();
  cards = one ? one.images.map((image, k) => {
    const card = make("button", "card");
    card.type = "button";
    card.k = k;
    card.image = image;
    card.box = stage(image);
    const caption = make("span", "caption");
    card.verdict = make("span", "verdict");
    card.score = make("span", "soft");
    caption.append(card.verdict, make("span", "", image.defect), card.score,
      make("span", "soft", image.name));
    card.append(card.box, caption);
    card.onclick = () => openDetail(state.order.indexOf(card));
    return card;
  }) : [];
  const kinds = one ? [...new Set(one.images.map((image) => image.defect))].sort() : [];
  $("defect").replaceChildren(option("", "any"), ...kinds.map((kind) => option(kind, kind)));
  if (!kinds.includes(state.defect)) state.defect = "";
  $("defect").value = state.defect;
};
const option = (value, text) => {
  const node = make("option", "", text);
  node.value = value;
  return node;
};
const keep = {
  all: () => true,
  errors: (kind) => kind !== "ok",
  fn: (kind) => kind === "fn",
  fp: (kind) => kind === "fp",
  nl: (kind) => kind === "nl",
  bad: (kind, image) => image.label === 1,
  good: (kind, image) => image.label === 0,
};
const drawGallery = () => {
  const one = cell();
  const found = [];
  const counts = {ok: 0, fn: 0, fp: 0, nl: 0};
  for (const card of cards) {
    if (!one) continue;
    const [kind, text] = one.verdicts[card.k];
    counts[kind]++;
    card.className = "card " + kind;
    card.verdict.className = "verdict " + kind;
    card.verdict.textContent = text;
    card.score.textContent = scoreOf(one, card.k);
    card.wrong = one.wrong[card.k];
    fill(card.box, card.image, one, card.k);
    if (keep[state.verdict](kind, card.image) &&
        (state.defect === "" || card.image.defect === state.defect)) found.push(card);
  }
  found.sort((a, b) => b.wrong - a.wrong || a.k - b.k);
  state.order = found;
  $("gallery").replaceChildren(...found);
  const left = category() && category().omitted;
  $("count").textContent = !category() ? "There are no pictures." :
    !one ? "This setup was not run here." :
    "Images shown: " + found.length + " of " + cards.length + ". Missed: " + counts.fn +
    ", false alarms: " + counts.fp + ", detected, not localised: " + counts.nl + (left ? "; " + left + " further images, with smaller errors, " +
    "are left out to keep this file small" : "") + ".";
};
const drawCharts = () => {
  const one = category();
  $("curves-of").textContent = one ? one.title + ", " + (data.archs[state.arch] || "") : "";
  const html = one ? one.charts[state.arch] || [] : [];
  $("charts").innerHTML = html.join("");
};

// ------------------------------------------------------------------------------- choosing
const setupNames = () => data.setups.filter((name) => name in cells());
const drawSetups = () => {
  $("setups").replaceChildren(...setupNames().map((name) => {
    const button = make("button", "", name);
    button.type = "button";
    button.setAttribute("aria-pressed", String(name === state.setup));
    button.onclick = () => chooseSetup(name);
    return button;
  }));
};
const chooseSetup = (name) => {
  state.setup = name;
  drawSetups();
  drawGallery();
  if (state.card) drawDetail();
};
const stepSetup = (by) => {
  const names = setupNames();
  if (!names.length) return;
  chooseSetup(names[(names.indexOf(state.setup) + by + names.length) % names.length]);
};
const chooseArch = (name) => {
  state.arch = name;
  const names = setupNames();
  if (!names.includes(state.setup)) state.setup = names[names.length - 1];
  $("arch").value = name;
  chooseSetup(state.setup);
  drawCharts();
};
const chooseCategory = (k) => {
  state.card = null;  // an open picture would be of another category
  state.category = k;
  $("category").value = String(k);
  const archs = category() ? Object.keys(data.archs).filter((name) => name in category().cells) : [];
  $("arch").replaceChildren(...archs.map((name) => option(name, data.archs[name])));
  buildCards();
  chooseArch(archs.includes(state.arch) ? state.arch : archs[0]);
};
const setFade = (value) => {
  state.fade = Math.min(100, Math.max(0, value));
  // 0 the image in colour, 50 the heat map over it, 100 the mask
  root.style.setProperty("--heat", String(Math.min(1, state.fade / 50)));
  root.style.setProperty("--mask", String(Math.max(0, state.fade - 50) / 50));
  $("fade").value = $("detail-fade").value = String(state.fade);
};
const setLines = (on) => {
  state.lines = on;
  document.body.classList.toggle("no-lines", !on);
  $("truth").setAttribute("aria-pressed", String(on));
};
const setVerdict = (value) => {
  state.verdict = $("verdict").value = value;
  drawGallery();
};
data.categories.forEach((one, k) => $("category").append(option(String(k), one.title)));
$("category").onchange = () => chooseCategory(Number($("category").value));
$("arch").onchange = () => chooseArch($("arch").value);
$("verdict").onchange = () => setVerdict($("verdict").value);
$("defect").onchange = () => { state.defect = $("defect").value; drawGallery(); };
$("fade").oninput = () => setFade(Number($("fade").value));
$("detail-fade").oninput = () => setFade(Number($("detail-fade").value));
$("truth").onclick = () => setLines(!state.lines);

// ------------------------------------------------------------------------ one picture, large
const captionOf = (name, one, k) => {
  const caption = make("span", "caption"), [kind, text] = one.verdicts[k];
  caption.append(make("span", "", name), make("span", "verdict " + kind, text),
    make("span", "soft", scoreOf(one, k)));
  return caption;
};
const drawDetail = () => {
  const card = state.card;
  const at = state.order.indexOf(card);  // -1: hidden by the filters with this setup
  if (at >= 0) state.at = at;
  const image = card.image;
  const one = cell();
  $("detail-name").textContent = image.name;
  $("detail-facts").textContent = state.setup + ": " + one.verdicts[card.k][1] + ", " +
    scoreOf(one, card.k) + ". " +
    (image.label ? "Defect: " + image.defect : "Normal image") + ", " + image.w + " x " + image.h +
    " px" + (at < 0 ? "" : ", picture " + (at + 1) + " of " + state.order.length) + ".";
  let large = $("large").firstChild;
  if (!large || large.image !== image) {
    large = stage(image);
    large.image = image;
    $("large").replaceChildren(large);
    $("strip").replaceChildren(...setupNames().map((name) => {
      const button = make("button");
      button.type = "button";
      button.name = name;
      button.box = stage(image);
      button.append(button.box, captionOf(name, cells()[name], card.k));
      button.onclick = () => chooseSetup(name);
      fill(button.box, image, cells()[name], card.k);
      return button;
    }));
  }
  fill(large, image, one, card.k);
  [...$("strip").children].forEach((button) =>
    button.setAttribute("aria-pressed", String(button.name === state.setup)));
};
const openDetail = (at) => {
  if (!state.order.length) return;
  state.card = state.order[(at + state.order.length) % state.order.length];
  if (!$("detail").open) $("detail").showModal();
  drawDetail();
};
$("detail").addEventListener("close", () => {
  const card = state.card;
  state.card = null;
  $("large").replaceChildren();
  $("strip").replaceChildren();
  if (card) card.focus();
});
$("close").onclick = () => $("detail").close();
const step = (by) => {
  const at = state.order.indexOf(state.card);
  openDetail(at >= 0 ? at + by : state.at - (by < 0));
};
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("detail").onclick = (event) => { if (event.target === $("detail")) $("detail").close(); };

// ---------------------------------------------------------------------------------- print
// On paper: every image with the heat maps of all setups, worst errors first; every chart and table.
const sheet = (image, k, setups) => {
  const box = make("div", "sheet");
  box.style.setProperty("--n", String(Math.min(7, setups.length + 1)));
  box.append(make("p", "", image.name + ", " + image.defect));
  for (const [name, one] of [["image"], ...setups]) {
    const cell = make("div");
    cell.append(stage(image), one ? captionOf(name, one, k) : make("span", "caption", name));
    fill(cell.firstChild, image, one, k);
    box.append(cell);
  }
  return box;
};
const printed = (one, arch) => {
  const setups = data.setups.filter((name) => name in one.cells[arch])
    .map((name) => [name, one.cells[arch][name]]);
  const worst = one.images.map((_, k) => Math.max(...setups.map(([, cell]) => cell.wrong[k])));
  const order = [...worst.keys()].sort((a, b) => worst[b] - worst[a] || a - b);
  const charts = make("div");
  charts.innerHTML = one.charts[arch].join("");
  return [make("h3", "", one.title + ", " + data.archs[arch]),
    document.querySelector(".scale").cloneNode(true),
    ...order.map((k) => sheet(one.images[k], k, setups)), charts];
};
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  folded.forEach((node) => { node.open = true; });
  $("print").replaceChildren(...data.categories.flatMap((one) =>
    Object.keys(data.archs).filter((arch) => arch in one.cells).flatMap((arch) => printed(one, arch))));
});
addEventListener("afterprint", () => {
  folded.forEach((node) => { node.open = false; });
  $("print").replaceChildren();
});

// ------------------------------------------------------------------------------- keyboard
const keys = {
  "[": () => stepSetup(-1), "]": () => stepSetup(1),
  "1": () => setFade(0), "2": () => setFade(50), "3": () => setFade(100),
  ",": () => setFade(state.fade - 10), ".": () => setFade(state.fade + 10),
  o: () => setLines(!state.lines),
  n: () => setVerdict("fn"), p: () => setVerdict("fp"), e: () => setVerdict("all"),
  t: () => $("theme").onclick(),
};
const detailKeys = {
  ArrowLeft: () => step(-1), ArrowRight: () => step(1),
  ArrowUp: () => stepSetup(-1), ArrowDown: () => stepSetup(1),
};
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = event.target.tagName;
  if (at === "SELECT" || (at === "INPUT" && event.key.startsWith("Arrow"))) return;
  const open = state.card !== null;
  if (open && "npe".includes(event.key)) return;
  const action = (open && detailKeys[event.key]) || keys[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

setFade(50);
setLines(true);
chooseCategory(0);
root.dataset.ready = "yes";
})();
