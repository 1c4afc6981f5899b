/** What the visitor sees: page.json says what is there, worker.js does the work. */

const at = (id) => document.getElementById(id);
const status = (text) => (at("status").textContent = text);
const [input] = at("drop").getElementsByTagName("input");
const worker = new Worker("worker.js", { type: "module" });
let page;

const handlers = {
  progress({ received, total }) {
    at("progress").value = received / total;
    status(`Download and decoding: ${size(received)} of ${size(total)}`);
  },

  decoded({ seconds, passed }) {
    at("progress").hidden = true;
    fact("Decoding", time(seconds), `${page.weights.toLocaleString("en")} weights; with the download ${time(passed)}`);
    if (page.runtime) status("Starting the model …");
    else status("This page has no onnxruntime-web to run the model with; riq web --runtime adds it.");
  },

  ready({ inputs, takesImage }) {
    at("takes").textContent = `${takesImage ? "an image, or " : ""}an .npz file with ${inputs.join(", ")}`;
    at("samples").hidden = false;
    if (page.samples) busy(true);
    else status("");
  },

  result({ source, samples, seconds, outputs, deviations }) {
    busy(false);
    status("");
    fact("One run", time(seconds), samples === 1 ? "of 1 sample" : `mean of ${samples} samples`);
    if (deviations.length) {
      const largest = deviations.reduce((one, other) => (other.mean > one.mean ? other : one));
      const recorded = page.deviations[largest.name];
      const beside = recorded === undefined ? "" : `; at compression ${number(recorded)}`;
      fact("Deviation", number(largest.mean), `worst sample ${number(largest.worst)}${beside}`);
    }
    at("source").textContent = `Of ${samples === 1 ? "" : "the first sample in "}${source}:`;
    at("result").getElementsByTagName("tbody")[0].replaceChildren(...outputs.map(row));
    at("result").hidden = false;
  },

  error(message) {
    busy(false);
    at("progress").hidden = true;
    status("");
    at("error").textContent = message;
    at("error").hidden = false;
  },
};

function busy(isBusy) {
  input.disabled = isBusy;
  if (isBusy) status("Running …");
  at("error").hidden = true;
}

function run(file) {
  if (!file || input.disabled) return;
  busy(true);
  worker.postMessage({ file });
}

/** Show a fact, in place of one with the same name. */
function fact(name, value, note) {
  const id = `fact-${name}`;
  const [box, term, detail, small] = ["div", "dt", "dd", "small"].map((tag) => document.createElement(tag));
  box.id = id;
  term.textContent = name;
  small.textContent = note;
  detail.append(value, small);
  box.append(term, detail);
  if (at(id)) at(id).replaceWith(box);
  else at("facts").append(box);
}

function row({ name, shape, pairs }) {
  const line = document.createElement("tr");
  const shown = pairs.flatMap(([label, value]) => {
    const span = document.createElement("span");
    span.textContent = `${label} ${typeof value === "string" ? value : number(Number(value))}`;
    return [span, " "]; // where a line may end
  });
  for (const content of [[name], [shape], shown]) {
    const cell = document.createElement("td");
    cell.append(...content);
    line.append(cell);
  }
  return line;
}

const number = (value) => String(Number(value.toPrecision(4)));

function time(seconds) {
  const [value, unit] = seconds < 1 ? [1000 * seconds, "ms"] : [seconds, "s"];
  return `${Number(value.toPrecision(3))}\u00a0${unit}`;
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  for (; bytes >= 1000 && unit < 3; unit++) bytes /= 1000;
  return `${unit ? bytes.toPrecision(3) : bytes}\u00a0${units[unit]}`;
}

worker.onmessage = ({ data }) => {
  for (const [kind, content] of Object.entries(data)) handlers[kind](content);
};
worker.onerror = (event) => handlers.error(event.message || "the page's worker could not be started");
input.onchange = () => {
  run(input.files[0]);
  input.value = ""; // so that the same file can be chosen again
};
at("drop").ondragover = (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
};
at("drop").ondragleave = () => at("drop").classList.remove("over");
at("drop").ondrop = (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  run(event.dataTransfer.files[0]);
};

async function start() {
  status("");
  const response = await fetch("page.json");
  if (!response.ok) throw new Error(`page.json: the server answers ${response.status} ${response.statusText}`);
  page = await response.json();
  document.title = page.title;
  document.getElementsByTagName("h1")[0].textContent = page.title;
  if (page.source !== null) fact("Original", size(page.source), "ONNX file");
  const ratio = page.source / page.bytes;
  const compared = ratio < 1 ? `×${(1 / ratio).toPrecision(3)} larger` : `×${ratio.toPrecision(3)} smaller`;
  fact("Archive", size(page.bytes), page.source === null ? "" : compared);
  worker.postMessage({ page });
}

start().catch(({ message }) => handlers.error(message));
