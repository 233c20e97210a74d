// The picture of what learning saves: the bits per byte of each text without and with what the model learned, and the
// mean saving with its interval. All numbers come from the server.

import {element} from "./elements.js";
import {getJson} from "./server.js";
import {describeSaving} from "./words.js";

const NUM_TEXTS = 300; // the last ones, which the picture shows
const WIDTH = 640, PANEL_HEIGHT = 150, GAP = 62, LEFT = 46, RIGHT = 12, TOP = 22;
const SVG = "http://www.w3.org/2000/svg";
let drawn = "";

export async function readSaving(path) {
  const saving = await getJson(`${path}/branch/saving?order=desc&limit=${NUM_TEXTS}`);
  saving.data.reverse();
  return saving;
}

export function showSaving(saving) {
  const state = JSON.stringify([saving?.model, saving?.num_texts, saving?.num_bytes, saving?.saving]);
  if (state === drawn) return;
  drawn = state;
  element("saving").hidden = !saving?.num_texts;
  if (!saving?.num_texts) return;
  element("saving-answer").textContent = describeSaving(saving);
  element("saving-picture").hidden = saving.data.length < 2;
  if (saving.data.length < 2) return;
  const first = saving.num_texts - saving.data.length + 1;
  element("saving-curves").replaceChildren(
    ...drawPanel(TOP, first, saving.data.length, "bits per byte of each text", [
      {css: "before", values: saving.data.map(text => text.frozen_bits_per_byte), hasDots: true},
      {css: "now", values: saving.data.map(text => text.live_bits_per_byte), hasDots: true},
    ]),
    ...drawPanel(TOP + PANEL_HEIGHT + GAP, first, saving.data.length, "mean saving so far, in bits per byte", [
      {css: "band", values: saving.data.map(text => text.saving.low), upper: saving.data.map(text => text.saving.high)},
      {css: "now", values: saving.data.map(text => text.saving.mean)},
    ], true));
}

function draw(tag, attributes, text) {
  const created = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) created.setAttribute(name, value);
  if (text !== undefined) created.textContent = text;
  return created;
}

// Round numbers between two limits.
function ticks(low, high) {
  const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(factor => factor * power).find(size => size >= rough);
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({length: last - first + 1}, (_, index) => Number(((first + index) * step).toPrecision(6)));
}

function drawPanel(top, first, count, title, curves, hasZero = false) {
  const numbers = curves.flatMap(curve => [...curve.values, ...(curve.upper ?? [])]).filter(number => number !== null);
  const lowest = Math.min(...numbers, hasZero ? 0 : Infinity), highest = Math.max(...numbers, hasZero ? 0 : -Infinity);
  const margin = 0.06 * (highest - lowest) || 0.1, low = lowest - margin, high = highest + margin;
  const x = index => LEFT + (count < 2 ? 0.5 : index / (count - 1)) * (WIDTH - LEFT - RIGHT);
  const y = number => top + PANEL_HEIGHT * (high - number) / (high - low);
  const parts = [draw("text", {x: LEFT, y: top - 8, class: "title"}, title)];
  for (const number of ticks(low, high)) {
    parts.push(draw("line", {x1: LEFT, x2: WIDTH - RIGHT, y1: y(number), y2: y(number), class: number ? "grid" : "zero"}));
    parts.push(draw("text", {x: LEFT - 6, y: y(number) + 4, class: "scale", "text-anchor": "end"}, String(number)));
  }
  for (const index of new Set(ticks(first, first + count - 1).filter(Number.isInteger))) {
    const place = x(index - first), anchor = place > WIDTH - 60 ? "end" : place < 90 ? "start" : "middle";
    const attributes = {x: place, y: top + PANEL_HEIGHT + 18, class: "scale", "text-anchor": anchor};
    parts.push(draw("text", attributes, `text ${index}`));
  }
  for (const {css, values, upper, hasDots} of curves) {
    const points = values.map((number, index) => number === null ? null : `${x(index).toFixed(1)},${y(number).toFixed(1)}`);
    const present = points.filter(point => point !== null);
    if (upper) {
      const back = upper.map((number, index) => number === null ? null : `${x(index).toFixed(1)},${y(number).toFixed(1)}`);
      parts.push(draw("polygon", {points: [...present, ...back.filter(point => point !== null).reverse()].join(" "), class: css}));
    } else parts.push(draw("polyline", {points: present.join(" "), class: css}));
    if (hasDots && count <= 60) {
      for (const point of present) parts.push(draw("circle", {cx: point.split(",")[0], cy: point.split(",")[1], r: 2.2, class: css}));
    }
  }
  return parts;
}
