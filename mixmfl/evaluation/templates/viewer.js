"use strict";
// All images of the case and its mask lie on one grid, as tiles of axial slices in one picture each.
// A volume is indexed [z][y][x]: z upwards, y from anterior to posterior, x from right to left.
const data = JSON.parse(document.getElementById("data").textContent);
const [depth, height, width] = data.shape;
const planes = [
  { name: "axial", letters: "RLAP", down: 1, across: 2 },
  { name: "coronal", letters: "RLSI", down: 0, across: 2 },
  { name: "sagittal", letters: "APSI", down: 0, across: 1 },
];
const shown = data.regions.map(() => true);
const slider = document.getElementById("slice");
const figures = [...document.querySelectorAll("figure")];
const panels = document.getElementById("panels"), footer = document.querySelector("footer");
const place = [...data.start];
let plane = 0, outlines = true, volumes = [], mask = null;

function voxels(image, number) {
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height).data;
  const isMask = number === figures.length; // it has a second byte, for there may be many classes
  const volume = new (isMask ? Uint16Array : Uint8Array)(depth * height * width);
  for (let z = 0, at = 0; z < depth; z++) {
    const left = (z % data.tiles) * width, top = Math.floor(z / data.tiles) * height;
    for (let y = 0; y < height; y++) {
      let from = 4 * ((top + y) * canvas.width + left);
      for (let x = 0; x < width; x++, at++, from += 4) volume[at] = pixels[from] + (isMask ? 256 * pixels[from + 1] : 0);
    }
  }
  return volume;
}

function cut(volume) {
  const { down, across } = planes[plane], rows = data.shape[down], columns = data.shape[across];
  const steps = [height * width, width, 1], slice = new volume.constructor(rows * columns);
  const first = place[plane] * steps[plane];
  for (let row = 0, at = 0; row < rows; row++) {
    const line = down === 0 ? rows - 1 - row : row; // z upwards
    for (let column = 0; column < columns; column++, at++)
      slice[at] = volume[first + line * steps[down] + column * steps[across]];
  }
  return { slice, rows, columns, tall: data.spacing[down], wide: data.spacing[across] };
}

function draw(canvas, volume) {
  const { slice, rows, columns, tall, wide } = cut(volume);
  const sharp = window.devicePixelRatio || 1, box = canvas.parentElement.clientWidth;
  const free = window.innerHeight - panels.offsetTop - footer.offsetHeight;
  const most = Math.max(320, free) / (rows * tall);
  const scale = Math.min(box / (columns * wide), most) * sharp;
  canvas.width = Math.round(box * sharp);
  canvas.height = Math.round(rows * tall * scale);
  canvas.style.height = canvas.height / sharp + "px";
  const left = (canvas.width - columns * wide * scale) / 2;
  const small = document.createElement("canvas");
  small.width = columns;
  small.height = rows;
  const grey = small.getContext("2d"), pixels = grey.createImageData(columns, rows);
  slice.forEach((value, at) => {
    pixels.data.fill(value, 4 * at, 4 * at + 3);
    pixels.data[4 * at + 3] = 255;
  });
  grey.putImageData(pixels, 0, 0);
  const context = canvas.getContext("2d");
  context.drawImage(small, left, 0, columns * wide * scale, canvas.height);
  if (outlines) outline(context, left, scale, sharp);
  letters(context, sharp);
}

function outline(context, left, scale, sharp) {
  const { slice, rows, columns, tall, wide } = cut(mask);
  data.regions.forEach((region, number) => {
    if (!shown[number]) return;
    const inside = (row, column) => row >= 0 && row < rows && column >= 0 && column < columns
      && region.values.includes(slice[row * columns + column]);
    context.beginPath();
    const line = (ax, ay, bx, by) => {
      context.moveTo(left + ax * wide * scale, ay * tall * scale);
      context.lineTo(left + bx * wide * scale, by * tall * scale);
    };
    for (let row = 0; row < rows; row++)
      for (let column = 0; column < columns; column++) {
        if (!inside(row, column)) continue;
        if (!inside(row - 1, column)) line(column, row, column + 1, row);
        if (!inside(row + 1, column)) line(column, row + 1, column + 1, row + 1);
        if (!inside(row, column - 1)) line(column, row, column, row + 1);
        if (!inside(row, column + 1)) line(column + 1, row, column + 1, row + 1);
      }
    context.lineCap = "square";
    for (const [colour, thick] of [["#000000a0", 3.5], [region.colour, 1.8]]) {
      context.strokeStyle = colour;
      context.lineWidth = thick * sharp;
      context.stroke();
    }
  });
}

function letters(context, sharp) {
  const { width: w, height: h } = context.canvas, [l, r, t, b] = planes[plane].letters;
  context.font = `bold ${13 * sharp}px sans-serif`;
  context.fillStyle = "#e0e0e0";
  context.textAlign = "center";
  context.textBaseline = "middle";
  const edge = 10 * sharp;
  for (const [letter, x, y] of [[l, edge, h / 2], [r, w - edge, h / 2], [t, w / 2, edge], [b, w / 2, h - edge]])
    context.fillText(letter, x, y);
}

function show() {
  if (!mask) return; // a window may be resized, or a key pressed, before the pictures are read
  const last = data.shape[plane] - 1;
  place[plane] = Math.min(Math.max(place[plane], 0), last);
  slider.max = last;
  slider.value = place[plane];
  document.getElementById("place").textContent = `${planes[plane].name} ${place[plane] + 1} / ${last + 1}`;
  document.querySelectorAll("[data-plane]").forEach((button) =>
    button.setAttribute("aria-pressed", String(Number(button.dataset.plane) === plane)));
  figures.forEach((figure, number) => draw(figure.querySelector("canvas"), volumes[number]));
}

function layout() {
  const phone = window.innerWidth < 700 && window.innerHeight > window.innerWidth;
  const columns = Math.min(figures.length, phone ? 2 : 4);
  panels.style.setProperty("--columns", columns);
  show();
}

function step(by) {
  place[plane] += by;
  show();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageUp: 10, PageDown: -10, Home: -1e6, End: 1e6 };
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (key in steps) step(steps[key]);
  else if ("acs".includes(key)) { plane = "acs".indexOf(key); show(); }
  else if (key === "o") { outlines = !outlines; show(); }
  else if (key === "l") { place.splice(0, 3, ...data.start); show(); }
  else return;
  event.preventDefault();
});
slider.addEventListener("input", () => { place[plane] = Number(slider.value); show(); });
document.querySelectorAll("[data-plane]").forEach((button) =>
  button.addEventListener("click", () => { plane = Number(button.dataset.plane); show(); }));
document.querySelectorAll("[data-region]").forEach((box) =>
  box.addEventListener("change", () => { shown[Number(box.dataset.region)] = box.checked; show(); }));
panels.addEventListener("wheel", (event) => {
  if (event.ctrlKey) return;
  event.preventDefault();
  step(event.deltaY < 0 ? 1 : -1);
}, { passive: false });
window.addEventListener("resize", layout);

const pictures = [...figures.map((figure) => figure.querySelector("img")), document.getElementById("mask")];
Promise.all(pictures.map((picture) => picture.decode())).then(() => {
  const read = pictures.map(voxels);
  mask = read.pop();
  volumes = read;
  layout();
});
