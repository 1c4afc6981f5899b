/**
 * The worker behind the page: downloads and decodes the archive, runs the model, and posts what page.js shows.
 *
 * Messages to it: `{page}`, the content of page.json, once; then `{file}`, samples to run on.
 * Messages from it have one of the keys `progress`, `decoded`, `ready`, `result` and `error`.
 */

import { restore } from "./riqz.js";
import { described, readFeeds, readNpz, takesImage } from "./samples.js";

const SHOWN = 5; // values of an output, at most
let page, ort, session, inputs;

self.onmessage = async ({ data }) => {
  try {
    if (data.page) await start(data.page);
    else {
      const feeds = await readFeeds(data.file, inputs, page.images);
      await run(feeds.map((inputs) => ({ inputs, outputs: {} })), data.file.name);
    }
  } catch (error) {
    postMessage({ error: error.message });
  }
};

async function start(content) {
  page = content;
  session = await startSession(await download());
  if (!session) return;
  // onnxruntime-web gives a free dimension without a name as 2^32 − 1.
  const named = (dim) => (dim >= 2 ** 31 ? "any" : dim);
  inputs = session.inputMetadata.map(({ name, type, shape }) => ({ name, type, shape: shape.map(named) }));
  postMessage({ ready: { inputs: inputs.map(described), takesImage: takesImage(inputs, page.images) } });
  if (page.samples) await run(await readSamples(await (await found(page.samples)).blob()), "the page's own samples");
}

/** A session of the restored model, which nothing holds any longer then; undefined without onnxruntime-web. */
async function startSession({ model, externalData }) {
  if (!page.runtime) return undefined;
  const folder = new URL(page.runtime, self.location);
  ort = await import(new URL("ort.wasm.min.mjs", folder));
  ort.env.wasm.wasmPaths = folder.href;
  return ort.InferenceSession.create(model, { externalData });
}

/** The model, decoded while its archive arrives. */
async function download() {
  const began = performance.now();
  let waited = 0; // for bytes
  const { body } = await found(page.archive);
  async function* pieces() {
    for (const reader = body.getReader(); ; ) {
      const asked = performance.now();
      const { done, value } = await reader.read();
      waited += performance.now() - asked;
      if (done) return;
      yield value;
    }
  }
  const model = await restore(pieces(), { externalData: true, onProgress: (progress) => postMessage({ progress }) });
  const passed = performance.now() - began;
  postMessage({ decoded: { seconds: (passed - waited) / 1000, passed: passed / 1000 } });
  return model;
}

async function found(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name}: the server answers ${response.status} ${response.statusText}`);
  return response;
}

/** The samples beside the page: inputs, and the outputs of the original where they are there, too. */
async function readSamples(blob) {
  const samples = [];
  for (const [key, array] of await readNpz(blob)) {
    const [, number, kind, name] = /^(\d+)\/(inputs|outputs)\/(.*)$/s.exec(key);
    samples[number] ??= { inputs: {}, outputs: {}, rows: page.rows[number] };
    samples[number][kind][name] = array;
  }
  return samples;
}

/** Run samples, and post the outputs of the first, how long one took, and how far outputs are from the original's. */
async function run(samples, source) {
  const distances = {}; // by output: of the samples for which it is defined
  let first;
  let passed = 0;
  for (const { inputs, outputs, rows } of samples) {
    const tensors = Object.entries(inputs).map(([name, { type, data, dims }]) => [name, new ort.Tensor(type, data, dims)]);
    const began = performance.now();
    const result = await session.run(Object.fromEntries(tensors));
    passed += performance.now() - began;
    first ??= result;
    for (const [name, original] of Object.entries(outputs)) {
      const defined = cosineDistances(original, result[name], rows).filter((distance) => !Number.isNaN(distance));
      if (defined.length) (distances[name] ??= []).push(...defined);
    }
  }
  const deviations = Object.entries(distances).map(([name, values]) => ({
    name,
    mean: values.reduce((sum, value) => sum + value, 0) / values.length,
    worst: Math.max(...values),
  }));
  const outputs = Object.entries(first).map(([name, tensor]) => shownOutput(name, tensor));
  postMessage({ result: { source, samples: samples.length, seconds: passed / samples.length / 1000, outputs, deviations } });
}

/** What is shown of an output: pairs of a label and a value. */
export function shownOutput(name, tensor) {
  const { type, dims } = tensor;
  return { name, shape: `${dims.join("×") || "1"} ${type}`, pairs: pairsOf(type, dims, numbersOf(tensor)) };
}

/** All values if they are few, the largest if these look like scores of classes, else least, largest and mean. */
function pairsOf(type, dims, data) {
  if (data.length <= SHOWN || type === "string") return Array.from(data.slice(0, SHOWN), (value) => ["", value]);
  if (type.startsWith("float") && data.length === dims.at(-1)) {
    const places = Array.from(data.keys()).sort((one, other) => data[other] - data[one]);
    return places.slice(0, SHOWN).map((place) => [`[${place}]`, data[place]]);
  }
  let [least, largest, sum] = [Infinity, -Infinity, 0];
  for (const value of data) {
    const number = Number(value);
    least = Math.min(least, number);
    largest = Math.max(largest, number);
    sum += number;
  }
  return [["min", least], ["max", largest], ["mean", sum / data.length]];
}

/**
 * The cosine distances of an output to that of the original, as riq measures them, eq. (1) of the paper.
 *
 * One for each row where the first axis has that length, else one for the whole, for each of the rows. NaN where the
 * original has no finite value that is not 0: then none is defined.
 */
export function cosineDistances(original, restored, rows) {
  const count = restored.dims[0] === rows ? rows : 1;
  const [y, z] = [original.data, numbersOf(restored)];
  const row = (data, at) => data.subarray((at * data.length) / count, ((at + 1) * data.length) / count);
  return Array.from({ length: rows }, (_, at) => cosineDistance(row(y, at % count), row(z, at % count)));
}

/** That of two vectors. Where y is NaN or infinite, z must be the same; any other NaN or infinity is infinitely far. */
function cosineDistance(y, z) {
  let [peakY, peakZ, agree] = [0, 0, true];
  for (let at = 0; at < y.length; at++) {
    if (Number.isFinite(y[at])) {
      peakY = Math.max(peakY, Math.abs(y[at]));
      peakZ = Math.max(peakZ, Math.abs(z[at])); // NaN stays
    } else agree &&= Object.is(y[at], z[at]);
  }
  if (!peakY) return NaN;
  if (y.length !== z.length) return 1;
  if (!agree || !Number.isFinite(peakZ)) return Infinity;
  if (!peakZ) return 1;
  let [yy, zz, yz] = [0, 0, 0];
  for (let at = 0; at < y.length; at++) {
    if (!Number.isFinite(y[at])) continue;
    const [a, b] = [y[at] / peakY, z[at] / peakZ]; // so that no square is too large or too small
    yy += a * a;
    zz += b * b;
    yz += a * b;
  }
  return Math.max(0, 1 - yz / Math.sqrt(yy * zz));
}

/** The values of a tensor; those of float16 are bits where the browser has no Float16Array. */
function numbersOf({ type, data }) {
  if (type !== "float16" || !(data instanceof Uint16Array)) return data;
  return Float32Array.from(data, (bits) => {
    const [sign, exponent, fraction] = [bits >> 15 ? -1 : 1, (bits >> 10) & 31, bits & 1023];
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1024 + fraction) * 2 ** (exponent - 25) : fraction * 2 ** -24);
  });
}
