// The page: it sends a drawing or an image file to POST /predict, and shows the probabilities as bars.

import { Pad } from "./pad.js";

const MOST_BARS = 10;
const MOST_LETTERS = 20; // in a line of a class's name
const PAUSE = 60; // milliseconds between two requests during drawing

const $ = (id) => document.getElementById(id);
const about = await (await fetch("model")).json();
const pad = new Pad($("pad"), $("pen"), about.drawing, () => predict(() => pad.image()));

/** The last response of the service; null before the first, and when no image is shown. */
let answer = null;

/** A function that makes the image of the next request; a newer one replaces it while a request is pending. */
let next = null;
let pending = false;

/** Requests a prediction for the image that `image` makes. */
async function predict(image) {
  next = image;
  $("hint").hidden = true;
  if (pending) return;
  pending = true;
  $("answer").setAttribute("aria-busy", "true");
  while (next !== null) {
    const current = next;
    next = null;
    const wait = await request(current);
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
  pending = false;
  $("answer").setAttribute("aria-busy", "false");
}

/** Sends one request and shows the response; returns the milliseconds to wait before the next. */
async function request(image) {
  try {
    const body = await image();
    if (body === null) return 0; // cleared in the meantime
    const type = body.type.startsWith("image/") ? body.type : "application/octet-stream";
    const response = await fetch("predict?pixels", { method: "POST", headers: { "Content-Type": type }, body });
    const content = await response.json();
    if (pad.empty) return 0;
    if (!response.ok) throw new Error(content.error);
    answer = content;
    showSeen(content.pixels[0]);
    complain("");
  } catch (error) {
    answer = null;
    complain(error instanceof TypeError ? "The service does not answer." : error.message);
  }
  show();
  return PAUSE;
}

/** Returns the temperature that the slider is set to. */
const temperature = () => Number($("temperature").value);

/** Returns the columns of the table: name, colour, probabilities (undefined before the first response), T. */
function columns() {
  const student = answer?.predictions[0].probabilities;
  if (about.teacher === null) {
    return [
      { name: "T = 1", kind: "student", values: student, temperature: 1 },
      { name: `T = ${temperature()}`, kind: "student", values: student, temperature: temperature(), again: true },
    ];
  }
  const teacher = answer?.teacher.predictions[0].probabilities;
  return [
    { name: about.teacher.model, kind: "teacher", values: teacher, temperature: temperature() },
    { name: about.model, kind: "student", values: student, temperature: temperature() },
  ];
}

/** Softens probabilities: p^(1/T), normalised to sum 1, is softmax(logits / T). */
function soften(values, temperature) {
  const powers = values.map((value) => value ** (1 / temperature));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((power) => power / sum);
}

/** Returns one decimal, and never "0.0 %" or "100.0 %", which would be rounded. */
function percent(value) {
  if (value < 0.001) return "<0.1 %";
  return value > 0.999 ? ">99.9 %" : `${(100 * value).toFixed(1)} %`;
}

const best = (values) => values.indexOf(Math.max(...values));

/** Redraws the table, and announces the predictions to screen readers. */
function show() {
  const table = columns();
  const shown = shownClasses(table);
  $("heads").replaceChildren(row("col", "Class", table.map(heading)));
  $("bars").replaceChildren(...shown.map((index) => barRow(index, table)));
  $("axes").replaceChildren(row("row", "", table.map(axis)));
  $("scale").hidden = about.teacher === null; // its columns are the two temperatures
  $("scale").textContent =
    temperature() === 1
      ? "Bars: the networks' own probabilities, at temperature 1."
      : `Thick bars: softened, at temperature ${temperature()}. Thin bars: at temperature 1.`;
  $("few").hidden = answer === null || shown.length === about.classes.length;
  $("few").textContent = `The ${shown.length} most probable of ${about.classes.length} classes.`;
  $("seen").hidden = answer === null;
  $("degrees").value = $("temperature").value;
  const sentence = answer === null ? "" : table.map(({ name, values }) => `${name}: ${top(values)}`).join(", ");
  if ($("verdict").textContent !== sentence) $("verdict").textContent = sentence;
}

const top = (values) => `${about.classes[best(values)]}, ${percent(Math.max(...values))}`;

function heading({ name, kind, values, again }) {
  const cell = element("th");
  cell.scope = "col";
  cell.className = kind;
  cell.append(named("span", name));
  cell.append(values ? named("strong", about.classes[best(values)]) : element("strong", "–"));
  cell.append(element("small", values && !again ? `${percent(Math.max(...values))} sure` : "\u00a0"));
  return cell;
}

/** Returns the ends of a column's axis, which all bars share. */
function axis() {
  const cell = element("td");
  const ends = cell.appendChild(element("div")).appendChild(element("small"));
  ends.append(element("span", "0"), element("span", "100 %"));
  return cell;
}

function complain(sentence) {
  $("complaint").textContent = sentence;
  $("complaint").hidden = sentence === "";
}

/** Returns the classes with a bar: all in their order, or the most probable ones. */
function shownClasses(table) {
  const all = about.classes.map((_, index) => index);
  if (all.length <= MOST_BARS) return all;
  const student = table.at(-1).values;
  return (student ? all.sort((a, b) => student[b] - student[a]) : all).slice(0, MOST_BARS);
}

function barRow(index, table) {
  const cells = table.map(({ kind, values, temperature }) => {
    const cell = element("td");
    cell.className = kind;
    const line = cell.appendChild(element("div"));
    const bar = line.appendChild(element("i"));
    if (values) {
      const value = soften(values, temperature)[index];
      cell.classList.toggle("best", index === best(values));
      bar.style.setProperty("--part", value);
      bar.style.setProperty("--hard", values[index]);
      bar.classList.toggle("both", about.teacher !== null && temperature !== 1);
      line.append(percent(value));
    }
    return cell;
  });
  const line = row("row", about.classes[index], cells);
  line.classList.toggle("best", Boolean(table.at(-1).values) && index === best(table.at(-1).values));
  return line;
}

function row(scope, name, cells) {
  const line = element("tr");
  const first = line.appendChild(named("th", name));
  first.scope = scope;
  line.append(...cells);
  return line;
}

/** Returns an element with a name, which may be wrapped after a hyphen and the like. */
function named(kind, name) {
  const node = element(kind);
  const parts = name.split(/(?<=[-_./])(?!\d)/).flatMap((part) => [document.createElement("wbr"), part]);
  node.append(...parts.slice(1));
  return node;
}

function element(kind, text = "") {
  const node = document.createElement(kind);
  node.textContent = text;
  return node;
}

/** Shows the network's input: channels of rows of pixels, 0..255. */
function showSeen(channels) {
  const canvas = $("pixels");
  const [height, width] = [channels[0].length, channels[0][0].length];
  [canvas.width, canvas.height] = [width, height];
  const image = new ImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const colours = channels.length === 3 ? channels.map((rows) => rows[y][x]) : Array(3).fill(channels[0][y][x]);
      image.data.set([...colours, 255], 4 * (y * width + x));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  $("size").textContent = `${width} × ${height} pixels`;
}

function clear() {
  pad.clear();
  answer = null;
  next = null;
  $("hint").hidden = false;
  complain("");
  show();
}

function take(file) {
  if (!file) return;
  pad.showPicture(file);
  predict(async () => file);
}

/** Fills in the texts of the page, and registers its event handlers. */
function start() {
  const label = (model) => `${model.model} (${model.arch})`;
  $("title").textContent = about.drawing ? "Draw a digit" : "Drop a picture";
  $("models").textContent =
    about.teacher === null
      ? `${label(about)}, trained on ${about.dataset}`
      : `${label(about.teacher)} beside ${label(about)}, trained on ${about.dataset}`;
  $("hint").textContent = about.drawing ? "Draw here, or drop a picture" : "Drop a picture here";
  $("help").textContent = about.drawing
    ? "With mouse or finger; or with the arrow keys, while the space bar lowers and lifts the pen."
    : "Or choose one; it is scaled as the training pictures were.";
  const longest = Math.max(...about.classes.map((name) => name.length), "Class".length);
  $("heads").classList.toggle("words", longest > "Class".length);
  $("heads").classList.toggle("long", longest > MOST_LETTERS);
  document.documentElement.style.setProperty("--names", `${Math.min(longest, MOST_LETTERS)}ch`);

  $("temperature").value = about.softening;
  $("temperature").addEventListener("input", show);
  $("clear").addEventListener("click", clear);
  $("file").addEventListener("change", (event) => {
    take(event.target.files[0]);
    event.target.value = ""; // the same file may be chosen again
  });
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    $("field").classList.add("over");
  });
  document.addEventListener("dragleave", () => $("field").classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("field").classList.remove("over");
    take(event.dataTransfer.files[0]);
  });
  show();
}

start();
