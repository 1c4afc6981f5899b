/**
 * Decodes riq archives (.riqz) in browsers, in workers and in Node >= 20.16, without dependencies.
 *
 * `decode` gives one layer after another while the bytes of an archive arrive; `restore` gives the ONNX model.
 * The format is specified in FORMAT.md; section names in comments are those of that page.
 */

// Limits, as Python's riq has them.
const HEADER_BYTES = 24;
const MANIFEST_BYTES = 16 * 2 ** 20; // stored, and inflated
const MANIFEST_DEPTH = 100;
const RESTORED_BYTES = 8 * 2 ** 30; // skeleton and tensors together, unless `maxSize` says otherwise
const LEAST_ROOM = 2 ** 25; // bytes that codes may always take beside what is restored
const CODE_BYTES = 16;
const LAYER_SYMBOLS = 2 ** 40;
const DIMENSIONS = 32;
const STREAM_SYMBOLS = 2 ** 20;
const TABLE_SYMBOLS = 2 ** 16;
const SYMBOL_BOUND = 2 ** 31;
const LEVEL_BOUND = 2 ** 29;
const CELLS = 2 ** 12;
const SEVERAL = 4; // scales of a layer, and magnitudes
const CODE_MAX = 256;
const CODES = 2 ** 24;
const CLASSES = 64;
const ROOT_MAX = 2 ** 24;

const ROW = 2 ** 15; // weights, at most, of several axes that make up a row
const MODEL_BYTES = 2 ** 31; // protobuf's bound of one message

const TOTAL = 2 ** 24; // sum of the frequencies of a table
const QUARTERS = [1, 1.189207115002721, 1.4142135623730951, 1.681792830507429];
const FEATURES = ["classes", "scales", "student", "trellis"];

const FLOAT32_MAX = 2 ** 128 - 2 ** 104;
const DTYPES = {
  float16: { bytes: 2, onnx: 10, largest: 65504, Values: Uint16Array, round: roundToFloat16 },
  bfloat16: { bytes: 2, onnx: 16, largest: 2 ** 128 - 2 ** 120, Values: Uint16Array, round: roundToBfloat16 },
  float32: { bytes: 4, onnx: 1, largest: FLOAT32_MAX, Values: Float32Array },
  float64: { bytes: 8, onnx: 11, largest: Number.MAX_VALUE, Values: Float64Array },
};

// Errors, named as in Python.

/** The archive cannot be decoded. */
export class ArchiveError extends Error {
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** The bytes do not begin as a riq archive does. */
export class NotAnArchive extends ArchiveError {}

/** The archive needs a newer riq. */
export class UnsupportedArchive extends ArchiveError {}

/** The archive is damaged or was made to mislead. */
export class CorruptArchive extends ArchiveError {}

/** Restoring would need more memory than the limit allows. */
export class LimitExceeded extends ArchiveError {}

const ERRORS = { NotAnArchive, UnsupportedArchive, CorruptArchive, LimitExceeded, RangeError };

const corrupt = (message) => new CorruptArchive(`${message}; the archive is damaged`);

/** Text of an archive for a message: what is not seen, or moves what is seen, becomes an escape. */
function quoted(text) {
  const escape = (character) => `\\u{${character.codePointAt(0).toString(16)}}`;
  return `'${text.replace(/(?! )[\p{C}\p{Z}]/gu, escape)}'`;
}

function check(condition, message) {
  if (!condition) throw corrupt(message);
}

// What callers use.

/**
 * The layers of an archive, one after another, each as soon as its bytes have arrived and are decoded.
 *
 * `source`: Response, Blob, ReadableStream or async iterable of Uint8Array, ArrayBuffer or a view of one.
 * `options`: see riqz.d.ts.
 */
export async function* decode(source, options = {}) {
  const archive = await Archive.open(source, options);
  try {
    await archive.skeleton();
    for await (const [entry, bytes] of archive.layers((layer) => new Uint8Array(layer.bytes))) {
      const { Values } = DTYPES[entry.dtype];
      const { name, op, tensors, dtype, shape, coding } = entry;
      yield { name, op, tensors, dtype, shape, coding, values: new Values(bytes.buffer) };
    }
  } finally {
    archive.close();
  }
}

/**
 * The model of an archive: `{model, externalData}`, as `InferenceSession.create(model, {externalData})` takes them.
 *
 * `options`: see riqz.d.ts.
 */
export async function restore(source, options = {}) {
  const archive = await Archive.open(source, options);
  try {
    const skeleton = await archive.skeleton();
    const placed = placeLayers(skeleton, archive.manifest.layers, options.externalData ?? false);
    for await (const [entry, bytes] of archive.layers((layer) => placed.target(layer))) placed.put(entry, bytes);
    return { model: placed.model, externalData: placed.externalData };
  } finally {
    archive.close();
  }
}

/**
 * A cache for transformers.js, as its `env.customCache`: asked for `model.onnx`, it restores `model.riqz` beside it.
 *
 * `read(path)`: the source of an archive, undefined if there is none; by default it is fetched.
 * Other options are those of `restore`.
 */
export function riqCache({ read = fetched, ...options } = {}) {
  return {
    async match(path) {
      const archive = path.endsWith(".onnx") ? await read(path.replace(/onnx$/, "riqz")) : undefined;
      if (!archive) return undefined;
      // Decoded when the body is read: an error of `match` would only mean that nothing was found.
      const pull = async (controller) => {
        controller.enqueue((await restore(archive, options)).model);
        controller.close();
      };
      return new Response(new ReadableStream({ pull }, { highWaterMark: 0 }));
    },
    async put() {}, // other files stay where they are
  };
}

async function fetched(path) {
  const response = await fetch(path);
  const isPage = response.headers.get("content-type")?.startsWith("text/html"); // some servers send one for what is missing
  return response.ok && !isPage ? response : undefined;
}

// Layout

/** An archive whose manifest has been read; its sections are read in their order. */
class Archive {
  constructor(manifest, input, pool, size, options) {
    this.manifest = manifest;
    this.input = input;
    this.pool = pool;
    this.size = size;
    this.options = options;
    this.decoded = 0;
  }

  static async open(source, options) {
    const input = new Input(source, options.signal);
    try {
      const { manifest, stored } = await readManifest(input, options.maxSize ?? RESTORED_BYTES);
      const size = HEADER_BYTES + stored + manifest.skeleton.bytes + sum(manifest.layers.map((layer) => layer.stored));
      if (input.size !== undefined) checkSize(input.size, size);
      const pool = options.workers ? new Pool(options.workers) : undefined;
      return new Archive(manifest, input, pool, size, options);
    } catch (error) {
      input.close();
      throw error;
    }
  }

  async skeleton() {
    const { bytes, size, crc32: expected } = this.manifest.skeleton;
    const data = await inflate(await this.section(bytes), size, "the skeleton");
    if (data.length !== size || crc32(data) !== expected) throw corrupt("skeleton: checksum differs");
    if (!this.manifest.layers.length) await this.end();
    return data;
  }

  /** Pairs of a layer and its restored bytes, which are in `target(layer)` unless workers decode. */
  async *layers(target) {
    for await (const [entry, bytes] of this.pool ? this.fromPool() : this.fromHere(target)) {
      if (entry === this.manifest.layers.at(-1)) await this.end();
      this.decoded += entry.size;
      this.progress();
      yield [entry, bytes];
    }
  }

  async *fromHere(target) {
    const pause = pauses(this.options.signal);
    for (const entry of this.manifest.layers) {
      const bytes = target(entry);
      await decodeLayer(entry, (length) => this.section(length), bytes, pause);
      yield [entry, bytes];
    }
  }

  /** Layers decoded side by side, in order; those in work take little more than a quarter of the restored model. */
  async *fromPool() {
    const room = Math.max(LEAST_ROOM, this.manifest.restored / 4);
    const jobs = [];
    let used = 0;
    let missing = 0; // sections of the last job
    const sections = this.sections();
    const arrival = () => handled(sections.next().then((arrived) => ({ arrived })));
    let arriving = arrival();
    while (arriving || jobs.length) {
      const events = jobs.length ? [jobs[0].finished] : [];
      if (arriving && (missing || used < room)) events.push(arriving);
      const { arrived, bytes } = await this.input.unlessAborted(Promise.race(events));
      if (bytes) {
        const { entry } = jobs.shift();
        used -= entry.bytes;
        yield [entry, bytes];
      } else if (arrived.done) {
        arriving = undefined;
      } else {
        const [entry, section] = arrived.value;
        if (!missing) {
          jobs.push(this.pool.start(entry));
          used += entry.bytes;
          missing = entry.sections.length;
        }
        jobs.at(-1).send(section);
        missing--;
        arriving = arrival();
      }
    }
  }

  async *sections() {
    for (const entry of this.manifest.layers) {
      for (const length of entry.sections) yield [entry, await this.section(length)];
    }
  }

  async section(length) {
    const bytes = await this.input.take(length, "the archive is cut off");
    this.progress();
    return bytes;
  }

  async end() {
    if ((await this.input.rest()) > 0) {
      throw new CorruptArchive(`the archive is longer than its manifest says: more than ${this.size} bytes`);
    }
  }

  progress() {
    this.options.onProgress?.({
      received: this.input.taken,
      total: this.size,
      decoded: this.decoded,
      weights: this.manifest.weights,
    });
  }

  close() {
    this.input.close();
    this.pool?.close();
  }
}

function checkSize(size, expected) {
  if (size === expected) return;
  const what = size < expected ? "cut off" : "longer than its manifest says";
  throw new CorruptArchive(`the archive is ${what}: ${size} bytes instead of ${expected}`);
}

async function readManifest(input, maxSize) {
  const header = await input.takeUpTo(HEADER_BYTES);
  const magic = [0x89, 0x52, 0x49, 0x51, 0x5a, 0x0d, 0x0a, 0x1a];
  if (!magic.every((byte, index) => header[index] === byte)) throw new NotAnArchive("not a riq archive");
  if (header.length < HEADER_BYTES) throw new CorruptArchive("the archive is cut off in its header");
  const view = new DataView(header.buffer, header.byteOffset);
  const version = view.getUint16(8, true);
  check(version >= 1, `unknown version ${version}`);
  if (version > 1) {
    throw new UnsupportedArchive(`archive version ${version}; this riq reads version 1: install a newer one`);
  }
  check(view.getUint16(10, true) === 0, "the header's reserved field is not 0");
  const stored = view.getUint32(16, true) + view.getUint32(20, true) * 2 ** 32;
  if (stored > MANIFEST_BYTES) {
    throw new LimitExceeded(`the manifest has ${stored} bytes; at most ${MANIFEST_BYTES} are read`);
  }
  const bytes = await input.take(stored, "the archive is cut off in its manifest");
  check(crc32(bytes) === view.getUint32(12, true), "the manifest's checksum differs");
  const manifest = manifestOf(parseJson(await inflate(bytes, MANIFEST_BYTES, "the manifest")));
  if (manifest.restored > maxSize) {
    throw new LimitExceeded(
      `the restored model needs ${manifest.restored} bytes, the limit is ${maxSize}; ` +
        "if you trust the archive, raise maxSize",
    );
  }
  let beside = 0;
  for (const { codes } of manifest.layers) beside = Math.max(beside, CODE_BYTES * sum(codes.map(({ count }) => count)));
  if (beside > Math.max(maxSize - manifest.restored, LEAST_ROOM)) {
    throw new LimitExceeded(
      `the codes of a layer need ${beside} bytes, which with those of the model are above the limit of ${maxSize}; ` +
        "if you trust the archive, raise maxSize",
    );
  }
  return { manifest, stored };
}

/** The bytes of a source, taken in pieces of a wanted length as they arrive. */
class Input {
  constructor(source, signal) {
    this.signal = signal;
    this.taken = 0;
    this.piece = new Uint8Array(0); // what has arrived and is not taken yet
    const stream = source?.body ?? (typeof source?.stream === "function" ? source.stream() : source);
    if (stream instanceof ArrayBuffer) this.piece = new Uint8Array(stream);
    else if (ArrayBuffer.isView(stream)) this.piece = bytesOf(stream);
    else if (typeof stream?.getReader === "function") this.reader = stream.getReader();
    else if (typeof stream?.[Symbol.asyncIterator] === "function") this.reader = readerOf(stream);
    else throw new TypeError("a Response, Blob, ReadableStream, async iterable, ArrayBuffer or Uint8Array is expected");
    if (!this.reader) this.size = this.piece.length;
    this.aborted = new Promise((_, reject) => {
      this.onAbort = () => reject(signal.reason);
      signal?.addEventListener("abort", this.onAbort);
    });
    this.aborted.catch(() => {});
  }

  /** The result of a promise, or the reason of the signal if that comes first. */
  async unlessAborted(promise) {
    this.signal?.throwIfAborted();
    return Promise.race([promise, this.aborted]);
  }

  async take(length, message) {
    const bytes = await this.takeUpTo(length);
    if (bytes.length < length) throw new CorruptArchive(message);
    return bytes;
  }

  /** The next `length` bytes, or all that are left. */
  async takeUpTo(length) {
    this.signal?.throwIfAborted();
    const pieces = [];
    let missing = length;
    while (missing > 0 && (this.piece.length || (await this.read()))) {
      const piece = this.piece.subarray(0, missing);
      this.piece = this.piece.subarray(piece.length);
      this.taken += piece.length;
      missing -= piece.length;
      pieces.push(piece);
    }
    return pieces.length === 1 ? pieces[0] : joined(pieces);
  }

  async read() {
    if (!this.reader) return false;
    for (;;) {
      const { done, value } = await this.unlessAborted(this.reader.read());
      if (done) return false;
      this.piece = bytesOf(value);
      if (this.piece.length) return true;
    }
  }

  /** How many bytes are there still, as far as they have arrived. */
  async rest() {
    if (!this.piece.length) await this.read();
    return this.piece.length;
  }

  close() {
    this.signal?.removeEventListener("abort", this.onAbort);
    this.reader?.cancel().catch(() => {});
  }
}

/** The bytes of a view, as a plain Uint8Array: the methods of Node's Buffer are others. */
function bytesOf(view) {
  if (!ArrayBuffer.isView(view)) throw new TypeError("a stream of Uint8Array is expected");
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

function readerOf(iterable) {
  const iterator = iterable[Symbol.asyncIterator]();
  return { read: async () => iterator.next(), cancel: async () => iterator.return?.() };
}

function joined(pieces) {
  const bytes = new Uint8Array(sum(pieces.map((piece) => piece.length)));
  let begin = 0;
  for (const piece of pieces) {
    bytes.set(piece, begin);
    begin += piece.length;
  }
  return bytes;
}

/** A function that lets other tasks run, and looks at the signal, when 30 ms have passed since it last did so. */
function pauses(signal) {
  let last = performance.now();
  return async () => {
    if (performance.now() - last < 30) return;
    await new Promise((resolve) => setTimeout(resolve));
    signal?.throwIfAborted();
    last = performance.now();
  };
}

/** A promise whose error need not be looked at: another may come first. */
function handled(promise) {
  promise.catch(() => {});
  return promise;
}

const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);
const product = (numbers) => numbers.reduce((total, number) => total * number, 1);

// Deflated data and checksums

/** The inflated bytes of one zlib stream, at most `limit`; in `target`, which they have to fill, if it is given. */
async function inflate(stored, limit, what, target) {
  const wrongSize = () => corrupt(`${what} does not have the size that was announced`);
  const pieces = [];
  let size = 0;
  const take = (piece) => {
    if (size + piece.length > limit) throw wrongSize();
    if (target) target.set(piece, size);
    else pieces.push(piece);
    size += piece.length;
  };
  try {
    await inflatePieces(stored, take);
  } catch (error) {
    throw error instanceof ArchiveError ? error : corrupt(`${what} cannot be inflated`);
  }
  // Not every engine tells of bytes behind the stream. Without its last byte it must not be whole.
  const isShorter = await inflatePieces(stored.subarray(0, -1), () => {}).then(() => true, () => false);
  if (isShorter || (target && size < target.length)) throw wrongSize();
  return target ?? joined(pieces);
}

async function inflatePieces(stored, take) {
  const { readable, writable } = new DecompressionStream("deflate");
  const writer = writable.getWriter();
  writer.write(stored).catch(() => {}); // its reader tells the same error
  writer.close().catch(() => {});
  const reader = readable.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      take(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const CRC_TABLE = new Int32Array(16 * 256); // of a byte, then of a byte with a zero byte behind it, and so on
for (let at = 0; at < CRC_TABLE.length; at++) {
  let crc = at < 256 ? at : CRC_TABLE[at - 256];
  if (at >= 256) crc = (crc >>> 8) ^ CRC_TABLE[crc & 255];
  else for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  CRC_TABLE[at] = crc;
}

/** CRC-32 of bytes behind others whose CRC-32 is `before`. */
function crc32(bytes, before = 0) {
  if (bytes.byteOffset % 4) bytes = bytes.slice();
  const words = new Int32Array(bytes.buffer, bytes.byteOffset, 4 * Math.floor(bytes.length / 16));
  let crc = ~before;
  for (let at = 0; at < words.length; at += 4) {
    crc =
      crcOfWord(words[at + 1], 8) ^
      crcOfWord(words[at + 2], 4) ^
      crcOfWord(words[at + 3], 0) ^
      crcOfWord(words[at] ^ crc, 12);
  }
  for (let at = 4 * words.length; at < bytes.length; at++) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ bytes[at]) & 255];
  return ~crc >>> 0;
}

/** What a word adds to the CRC-32 when so many zero bytes are behind it. */
function crcOfWord(word, zeros) {
  const at = 256 * zeros;
  return (
    CRC_TABLE[(at + 768) | (word & 255)] ^
    CRC_TABLE[(at + 512) | ((word >>> 8) & 255)] ^
    CRC_TABLE[(at + 256) | ((word >>> 16) & 255)] ^
    CRC_TABLE[at | (word >>> 24)]
  );
}

// Manifest

/** A number that was written with a point or an exponent: it is no integer, even where its value is one. */
class Real {
  constructor(value) {
    this.value = value;
  }
}

/** The value of a JSON text, with its objects as Maps. */
function parseJson(bytes) {
  try {
    return new Json(new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes)).document();
  } catch (error) {
    throw new CorruptArchive(`the manifest is not the JSON it should be: ${error.message}`, { cause: error });
  }
}

/** JSON as FORMAT.md has it: JSON.parse takes duplicate keys and any depth, and does not tell 1 from 1.0. */
class Json {
  constructor(text) {
    this.text = text;
    const string = String.raw`"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*"`;
    const number = String.raw`-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?`;
    const space = String.raw`[ \t\n\r]*`;
    this.token = new RegExp(`${space}(${string}|${number}|true|false|null|[[\\]{},:])${space}`, "y");
  }

  next() {
    const found = this.token.exec(this.text);
    if (!found) throw new SyntaxError("not JSON");
    return found[1];
  }

  document() {
    const value = this.value(this.next(), 0);
    if (this.token.lastIndex < this.text.length) throw new SyntaxError("something behind the document");
    return value;
  }

  value(token, depth) {
    if ((token === "{" || token === "[") && depth === MANIFEST_DEPTH) {
      throw new SyntaxError(`nested more than ${MANIFEST_DEPTH} deep`);
    }
    if (token === "{") return this.object(depth + 1);
    if (token === "[") return this.list(depth + 1);
    const value = JSON.parse(token); // which refuses what else is no value
    if (typeof value === "string" && !isWellFormed(value)) throw new SyntaxError("a lone surrogate");
    if (typeof value !== "number") return value;
    if (!Number.isFinite(value)) throw new RangeError(`${token.slice(0, 40)} is beyond all doubles`);
    if (/[.eE]/.test(token)) return new Real(value);
    return value === 2 ** 63 && BigInt(token) < 2n ** 63n ? 2 ** 63 - 1024 : value; // which stays below its bound
  }

  object(depth) {
    const result = new Map();
    for (let token = this.next(), first = true; first ? token !== "}" : true; token = this.next(), first = false) {
      if (token[0] !== '"') throw new SyntaxError("a key is expected");
      const key = this.value(token, depth);
      if (result.has(key)) throw new SyntaxError("duplicate key");
      if (this.next() !== ":") throw new SyntaxError("a colon is expected");
      result.set(key, this.value(this.next(), depth));
      if (this.isLast("}")) break;
    }
    return result;
  }

  list(depth) {
    const result = [];
    for (let token = this.next(), first = true; first ? token !== "]" : true; token = this.next(), first = false) {
      result.push(this.value(token, depth));
      if (this.isLast("]")) break;
    }
    return result;
  }

  /** Whether the object or list ends here; else a comma has to follow. */
  isLast(end) {
    const token = this.next();
    if (token !== "," && token !== end) throw new SyntaxError("a comma is expected");
    return token === end;
  }
}

function isWellFormed(text) {
  return !/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/.test(text);
}

const isInteger = (value) => typeof value === "number" && value >= 0 && value < 2 ** 63;
const isNumber = (value) => typeof value === "number" || value instanceof Real;
const isString = (value) => typeof value === "string";
const isObject = (value) => value instanceof Map;
const numberOf = (value) => (value instanceof Real ? value.value : value);
const within = (low, high) => (value) => isNumber(value) && numberOf(value) >= low && numberOf(value) <= high;

/** Of values: their name for messages, which they are, and what is checked inside of one that is `where`. */
const kind = (name, accepts, inside = () => {}) => ({ name, accepts, inside });
const orNull = ({ name, accepts }) => kind(`${name} or null`, (value) => value === null || accepts(value));
const objectOf = (keys, optional = {}) =>
  kind("an object", isObject, (value, where) => checkKeys(value, keys, optional, where));

function listOf({ accepts, inside }, plural) {
  const all = (value) => Array.isArray(value) && value.every(accepts);
  const each = (value, where) => value.forEach((item, at) => inside(item, `${where}[${at}]`));
  return kind(`a list of ${plural}`, all, each);
}

/** Check that an object has certain keys with values of their kinds. */
function checkKeys(object, keys, optional, where) {
  for (const key of Object.keys(keys)) check(object.has(key), `${where}: ${quoted(key)} is missing`);
  for (const [key, { name, accepts, inside }] of Object.entries({ ...optional, ...keys })) {
    if (!object.has(key)) continue;
    check(accepts(object.get(key)), `${where}: ${quoted(key)} is not ${name}`);
    inside(object.get(key), `${where}: ${key}`);
  }
}

const LARGEST = 1e30; // of numbers that tell how an archive was made
const INTEGER = kind("a non-negative integer", isInteger);
const INTEGERS = listOf(INTEGER, "non-negative integers");
const COUNT = kind("a positive integer", (value) => isInteger(value) && value > 0);
const NUMBER = kind("a number within ±1e+30", within(-LARGEST, LARGEST));
const POSITIVE = kind("a positive number below 1e+30", within(1 / LARGEST, LARGEST));
const NOT_NEGATIVE = kind("a number from 0 to 1e+30", within(0, LARGEST));
const STRING = kind("a string", isString);
const STRINGS = listOf(STRING, "strings");
const BOOLEAN = kind("true or false", (value) => typeof value === "boolean");
const AXES_AND_BYTES = objectOf({ axes: INTEGERS, bytes: INTEGER });

const LAYER_KEYS = {
  name: STRING,
  op: STRING,
  tensors: STRINGS,
  dtype: STRING,
  shape: INTEGERS,
  coding: STRING,
  symbols: INTEGER,
  entropy: kind("a number from 0 to 128", within(0, 128)),
  table: INTEGER,
  streams: INTEGERS,
  crc32: INTEGER,
};
const OPTIONAL_LAYER_KEYS = {
  bin_width: kind("a finite number", isNumber),
  scales: listOf(AXES_AND_BYTES, "objects"),
  classes: AXES_AND_BYTES,
  trellis: INTEGERS,
  magnitudes: listOf(AXES_AND_BYTES, "objects"),
};

// How an archive was made: nothing in it is needed here, but riq refuses an archive in which it is not as specified.

const SETTINGS_KEYS = {
  deviation: orNull(NOT_NEGATIVE),
  outputs: STRINGS,
  objective: STRING,
  max_loss_increase: NOT_NEGATIVE,
  max_flips: NOT_NEGATIVE,
  max_kl: NOT_NEGATIVE,
  margin: NUMBER,
  max_drop: kind("a number or a string", (value) => isString(value) || NOT_NEGATIVE.accepts(value)),
  direction: kind("'higher' or 'lower'", (value) => ["higher", "lower"].includes(value)),
};
const isPair = (value) => Array.isArray(value) && value.length === 2
  && POSITIVE.accepts(value[0]) && NUMBER.accepts(value[1]);
const PAIRS = listOf(kind("a pair of k and a number", isPair), "pairs of k and a number");
const MEASURED = objectOf(
  { name: STRING, mean: NOT_NEGATIVE, worst: NOT_NEGATIVE },
  { samples: INTEGER, standard_error: orNull(NOT_NEGATIVE) },
);
const TOP1 = kind("an object", isObject, (value, where) => {
  checkKeys(value, { name: STRING, kept: INTEGER, samples: COUNT, choices: COUNT }, { effective: COUNT }, where);
  check(value.get("kept") <= value.get("choices"), `${where}: more are 'kept' than there are 'choices'`);
});
const FACT = kind(
  "a number, a string, true, false or null",
  (value) => value === null || isString(value) || BOOLEAN.accepts(value) || NUMBER.accepts(value),
);
const JUDGEMENT = kind("an object", isObject, (value, where) => {
  const facts = Object.fromEntries([...value.keys()].map((key) => [key, FACT]));
  checkKeys(value, { value: orNull(NUMBER), limit: orNull(NUMBER) }, { ...facts, holds: BOOLEAN }, where);
});
const RESULT_KEYS = {
  k: POSITIVE,
  epsilon: NOT_NEGATIVE,
  allocation: STRING,
  rounding: STRING,
  deviation: NOT_NEGATIVE,
  worst: NOT_NEGATIVE,
  standard_error: orNull(NOT_NEGATIVE),
  measured: listOf(MEASURED, "objects"),
  evaluations: INTEGER,
  probes: INTEGER,
  trace: PAIRS,
  holdout: NOT_NEGATIVE,
  holdout_samples: INTEGER,
  holdout_standard_error: orNull(NOT_NEGATIVE),
  top1: listOf(TOP1, "objects"),
  holdout_top1: listOf(TOP1, "objects"),
  constraint: JUDGEMENT,
  constraint_holdout: JUDGEMENT,
  constraint_trace: PAIRS,
  layout: kind("an object of non-negative integers", (it) => isObject(it) && [...it.values()].every(isInteger)),
};

const MANIFEST_KEYS = {
  skeleton: objectOf({ bytes: INTEGER, size: INTEGER, crc32: INTEGER }),
  layers: listOf(kind("an object", isObject), "objects"),
  creator: STRING,
  source: objectOf({}, { bytes: COUNT, sha256: STRING }),
  calibration: objectOf({}, { kind: STRING, samples: INTEGER, sha256: STRING }),
  settings: objectOf({}, SETTINGS_KEYS),
  result: objectOf({}, RESULT_KEYS),
};

function manifestOf(document) {
  if (!isObject(document)) throw new CorruptArchive("manifest: an object is expected");
  checkKeys(document, { requires: STRINGS }, {}, "manifest");
  const requires = document.get("requires");
  const unknown = [...new Set(requires)].filter((feature) => !FEATURES.includes(feature)).sort();
  if (unknown.length) {
    throw new UnsupportedArchive(`needs a newer riq: this one does not know ${unknown.join(", ")}`);
  }
  checkKeys(document, MANIFEST_KEYS, {}, "manifest");
  const layers = document.get("layers").map((layer, index) => layerOf(layer, `manifest: layers[${index}]`));
  for (const layer of layers) {
    for (const feature of FEATURES.filter((feature) => layer.features.includes(feature))) {
      check(requires.includes(feature), `layer ${quoted(layer.name)}: ${feature} are not required`);
    }
  }
  const places = layers.flatMap((layer) => layer.tensors);
  if (new Set(places).size < places.length) throw new CorruptArchive("manifest: two layers claim the same tensor");
  const skeleton = Object.fromEntries(document.get("skeleton"));
  return {
    skeleton,
    layers,
    restored: skeleton.size + sum(layers.map((layer) => layer.bytes * layer.tensors.length)),
    weights: sum(layers.map((layer) => layer.size)),
  };
}

const INDEX = "\\[(0|[1-9][0-9]{0,8})\\]";
const PLACE = new RegExp(
  `^(graph|functions${INDEX})(\\.node${INDEX}\\.attribute${INDEX}\\.(g|graphs${INDEX}))*` +
    `(\\.initializer${INDEX}|\\.node${INDEX}\\.attribute${INDEX}\\.t)$`,
);

/** What a decoder needs of a layer's object in the manifest, as a plain object that can be sent to a worker. */
function layerOf(object, where) {
  if (isString(object.get("name"))) where = `layer ${quoted(object.get("name"))}`;
  checkKeys(object, LAYER_KEYS, OPTIONAL_LAYER_KEYS, where);
  const require = (condition, message) => check(condition, `${where}: ${message}`);
  const [scales, classes, magnitudes] = ["scales", "classes", "magnitudes"].map((key) => {
    const several = object.get(key) ?? [];
    return (isObject(several) ? [several] : several).map((codes) => Object.fromEntries(codes));
  });
  const [name, op, tensors, dtype, shape, coding, symbols, table, streams, crc32] = (
    ["name", "op", "tensors", "dtype", "shape", "coding", "symbols", "table", "streams", "crc32"]
  ).map((key) => object.get(key));
  require(coding === "raw" || object.has("bin_width"), "'bin_width' is missing");
  require(Object.hasOwn(DTYPES, dtype), `unknown dtype ${quoted(dtype)}`);
  require(["ans", "constant", "raw", "student"].includes(coding), `unknown coding ${quoted(coding)}`);
  require(shape.length <= DIMENSIONS, `${shape.length} dimensions; at most ${DIMENSIONS} are read`);
  const size = product(shape);
  require(size > 0 && size <= LAYER_SYMBOLS, "shape without weights or beyond all bounds");
  require(tensors.length > 0, "no tensor to restore into");
  require(tensors.every((place) => PLACE.test(place)), "not the path of a tensor");

  const codes = [...scales, ...classes, ...magnitudes];
  const trellis = object.get("trellis");
  const isAscending = (axes) =>
    axes.length > 0 && [...axes, shape.length].every((axis, index, all) => index === 0 || all[index - 1] < axis);
  for (const [key, several] of Object.entries({ scales, magnitudes })) {
    require(several.length <= SEVERAL, `${several.length} ${key}; at most ${SEVERAL} are read`);
    const different = new Set(several.map((one) => one.axes.join()));
    require(different.size === several.length, `two ${key} along the same axes`);
  }
  require(coding !== "raw" || !scales.length, "scales with coding 'raw'");
  require(coding === "ans" || !classes.length, `classes with coding ${quoted(coding)}`);
  require(coding === "student" || !magnitudes.length, `magnitudes with coding ${quoted(coding)}`);
  require(coding !== "raw" || !trellis?.length, "a trellis with coding 'raw'");
  require(!trellis || isAscending(trellis), "a trellis along what are not ascending axes of its shape");
  for (const one of codes) {
    require(isAscending(one.axes), "codes along what are not ascending axes of its shape");
    one.count = product(one.axes.map((axis) => shape[axis]));
    require(one.count <= CODES, `${one.count} codes along some axes; at most ${CODES} are read`);
  }

  const full = Math.ceil(size / STREAM_SYMBOLS);
  const [count, fewest, most] = {
    ans: [full, 2, TABLE_SYMBOLS],
    student: [full, 2, size],
    constant: [0, 1, 1],
    raw: [1, 0, 0],
  }[coding];
  if (classes.length) {
    const possible = full + CLASSES - 1;
    require(streams.length <= possible, `${streams.length} streams; at most ${possible} are possible`);
  } else {
    require(streams.length === count, `${streams.length} streams instead of ${count}`);
  }
  const mostSymbols = classes.length ? most * CLASSES : most;
  require(symbols >= fewest && symbols <= mostSymbols, `${symbols} symbols with coding ${quoted(coding)}`);
  require(coding !== "raw" || table === 0, `a table of ${table} bytes with coding ${quoted(coding)}`);
  const binWidth = coding === "raw" ? 0 : numberOf(object.get("bin_width"));
  require(coding === "raw" || binWidth > 0, "a bin width that is not positive");

  const sections = [...codes.map((one) => one.bytes), table, ...streams];
  const features = [scales.length && "scales", classes.length && "classes", trellis && "trellis", coding];
  return {
    name, op, tensors, dtype, shape, coding, symbols, crc32, binWidth, scales, classes, magnitudes, trellis,
    codes, table, streams, sections, features, size, bytes: size * DTYPES[dtype].bytes, stored: sum(sections),
  };
}

// Codings

/**
 * Write the restored bytes of a layer into `target`.
 *
 * `take(length)` gives the layer's next section, when it has arrived; `pause` lets other tasks run.
 */
async function decodeLayer(entry, take, target, pause) {
  const named = async (work) => {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof CorruptArchive)) throw error;
      throw new CorruptArchive(`layer ${quoted(entry.name)}: ${error.message}`);
    }
  };
  const sections = [];
  for (const { bytes } of entry.codes) sections.push(await take(bytes));
  const table = await take(entry.table);
  if (entry.coding === "raw") {
    await inflate(await take(entry.streams[0]), target.length, `layer ${quoted(entry.name)}`, target);
    await named(() => check(crc32(target) === entry.crc32, "checksum differs"));
    return;
  }
  const layer = await named(() => LayerDecoder.open(entry, sections, table, target, pause));
  let streams = 0;
  for (const part of layer.coded.parts) {
    const stored = part.isCoded ? await take(entry.streams[streams++]) : undefined;
    await named(() => layer.decode(part, stored));
    do {
      await pause();
    } while (await named(() => layer.restore()));
  }
}

/** Decodes the symbols of a layer, part by part, and restores weights as soon as their symbols are there. */
class LayerDecoder {
  /** A decoder of a layer, from its sections of codes and the one of its table. */
  static async open(entry, sections, table, target, pause) {
    const codes = [];
    for (const [index, one] of entry.codes.entries()) codes.push(await readCodes(one, sections[index], pause));
    const scales = codes.slice(0, entry.scales.length);
    const others = codes.slice(entry.scales.length);
    const Symbols = entry.coding === "student" ? StudentSymbols : TableSymbols;
    const coded = await Symbols.open(entry, scales, others, table, pause);
    const tooLarge = `a code of bin widths beyond ±${CODE_MAX}`;
    const scaleSums = await CodeSums.open(entry.shape, scales, tooLarge, pause);
    return new LayerDecoder(entry, coded, new Weights(entry, coded.sums, scaleSums, target));
  }

  constructor(entry, coded, weights) {
    this.entry = entry;
    this.coded = coded;
    this.weights = weights;
    const { groups } = coded.sums;
    this.isGrouped = groups.length > 1; // then symbols lie in the order of their groups
    this.symbols = integers(this.isGrouped ? entry.size : Math.min(entry.size, STREAM_SYMBOLS), this.coded);
    this.decoded = 0;
    this.next = new Float64Array(2 * CODE_MAX + 1); // of each group: where the next of its symbols is
    let begin = 0;
    for (const { group, count } of groups) {
      this.next[group + CODE_MAX] = begin;
      begin += count;
    }
  }

  /** Decode the symbols of a part, which is stored in one stream or, if they are all the same, in none. */
  decode({ runs }, stored) {
    const { coded, symbols, isGrouped, entry } = this;
    const begin = isGrouped ? this.decoded : 0;
    if (!isGrouped) this.next.fill(0);
    let end = begin;
    const stream = stored && new Stream(stored);
    for (const { group, count } of runs) {
      const table = coded.table(group);
      if (stream) stream.decode(table, symbols, end, end + count);
      else symbols.fill(table.symbols[0], end, end + count);
      end += count;
    }
    if (coded.lowBits) stream.addLowBits(coded.lowBits, symbols, begin, end);
    stream?.finish();
    if (entry.trellis && Math.max(-coded.low, coded.high) >= LEVEL_BOUND) {
      const isPossible = symbols.subarray(begin, end).every((symbol) => symbol > -LEVEL_BOUND && symbol < LEVEL_BOUND);
      check(isPossible, "a symbol whose level is not below 2^31");
    }
    this.decoded += end - begin;
  }

  /** Restore some of the weights whose symbols are decoded; whether more can be restored. */
  restore() {
    const { weights, entry, decoded } = this;
    const ready = this.isGrouped && decoded < entry.size ? 0 : decoded;
    weights.restore(this.symbols, this.next, Math.min(ready, weights.position + 2 ** 17));
    if (weights.position === entry.size) check(weights.crc === entry.crc32, "checksum differs");
    return weights.position < ready;
  }
}

/** An array for so many integers from `low` to `high`. */
function integers(length, { low, high }) {
  return low >= -(2 ** 15) && high < 2 ** 15 ? new Int16Array(length) : new Int32Array(length);
}

/** The parts, of 2^20 symbols, in which those of groups are stored, one group after the other: `{runs, isCoded}`. */
function partsOf(groups, isCoded = true) {
  const parts = [];
  let room = 0;
  for (let { group, count } of groups) {
    while (count) {
      if (!room) {
        parts.push({ runs: [], isCoded });
        room = STREAM_SYMBOLS;
      }
      const taken = Math.min(count, room);
      parts.at(-1).runs.push({ group, count: taken });
      count -= taken;
      room -= taken;
    }
  }
  return parts;
}

/** Symbols of the codings `ans` and `constant`, also in classes. */
class TableSymbols {
  static async open(entry, _scales, classes, stored, pause) {
    const tooLarge = `a class that is not below ${CLASSES}`;
    for (const { min, max } of classes) check(min >= 0 && max < CLASSES, tooLarge);
    return new TableSymbols(entry, await CodeSums.open(entry.shape, classes, tooLarge, pause), stored);
  }

  constructor(entry, sums, stored) {
    this.sums = sums;
    const { groups } = sums;
    check(groups.length === groups.at(-1).group + 1, "a class without weights");
    const bits = new Bits(stored);
    this.tables = groups.map(() => readTable(bits));
    check(bits.atEnd(), TOO_LONG);
    const { tables } = this;
    check(sum(tables.map((table) => table.symbols.length)) === entry.symbols,
          "the table does not have the symbols that were announced");
    this.low = Math.min(...tables.map(({ symbols }) => symbols[0]));
    this.high = Math.max(...tables.map(({ symbols }) => symbols.at(-1)));
    this.parts = groups.flatMap((one, at) => partsOf([one], tables[at].symbols.length > 1));
    const count = this.parts.filter((part) => part.isCoded).length;
    check(entry.streams.length === count, `${entry.streams.length} streams instead of ${count}`);
  }

  table(group) {
    return this.tables[group];
  }
}

/** Restores weights from symbols, and writes their bytes into `target`. */
class Weights {
  constructor(entry, groupSums, scaleSums, target) {
    this.type = DTYPES[entry.dtype];
    this.target = target;
    this.written = 0; // bytes
    this.crc = 0; // of them
    this.size = entry.size;
    this.position = 0; // weights that are restored
    const { Values, round } = this.type;
    this.values = new (round ? Float64Array : Values)(Math.min(entry.size, 2 ** 13)); // some that are not written yet
    this.filled = 0;
    this.rounded = round ? new Values(this.values.length) : this.values;
    this.groupSums = groupSums;
    this.scaleSums = scaleSums;
    const width = entry.trellis ? entry.binWidth / 4 : entry.binWidth;
    this.widths = new Float64Array(2 * CODE_MAX + 1);
    for (const { group: code } of scaleSums.groups) {
      this.widths[code + CODE_MAX] = entry.scales.length ? scaledWidth(width, code) : width;
    }
    this.lanes = new Slices(entry.shape, entry.trellis ?? []);
    // Of each lane, in bit 0: whether its next level is negative; in bit 1: whether the one before was. Or undefined.
    this.states = entry.trellis && new Uint8Array(this.lanes.count);
  }

  /** Restore weights up to number `end`, from symbols of which those of group g go on at `next[g + CODE_MAX]`. */
  restore(symbols, next, end) {
    const { inner } = this.groupSums;
    while (this.position < end) {
      const row = Math.floor(this.position / inner);
      const column = this.position - row * inner;
      const count = Math.min(inner - column, end - this.position, this.values.length - this.filled);
      this.dequantize(symbols, next, row, column, column + count);
      this.position += count;
      this.filled += count;
      if (this.filled === this.values.length || this.position === this.size) this.write();
    }
  }

  /** Dequantize the next symbols, which are those of a row from column `begin` to `end`. */
  dequantize(symbols, next, row, begin, end) {
    const { values, widths, states } = this;
    const { largest } = this.type;
    const group = (this.groupSums.base(row) + CODE_MAX) | 0; // an integer, so that engines add no doubles below
    const scale = (this.scaleSums.base(row) + CODE_MAX) | 0;
    const firstLane = this.lanes.base(row);
    const groups = this.groupSums.columns;
    const scales = this.scaleSums.columns;
    const lanes = this.lanes.offsets;
    const groupMask = maskOf(groups);
    const scaleMask = maskOf(scales);
    const laneMask = maskOf(lanes);
    for (let at = begin, to = this.filled; at < end; at++, to++) {
      let level = symbols[next[group + groups[at & groupMask]]++];
      if (states) {
        const lane = firstLane + lanes[at & laneMask];
        const state = states[lane];
        const minus = state & 1;
        states[lane] = (minus << 1) | ((state >> 1) ^ (level & 1));
        level = (((level << 2) | 1) ^ (0 - minus)) + minus;
      }
      const value = level * widths[scale + scales[at & scaleMask]];
      values[to] = value > largest ? largest : value < -largest ? -largest : value;
    }
  }

  /** Round the values that are there to the layer's type, and write their bytes. */
  write() {
    const { values, rounded, filled } = this;
    this.type.round?.(values, rounded, filled);
    const bytes = new Uint8Array(rounded.buffer, 0, filled * this.type.bytes);
    this.target.set(bytes, this.written);
    this.crc = crc32(bytes, this.crc);
    this.written += bytes.length;
    this.filled = 0;
  }
}

/** What turns an index into 0 where an array has one element for all of them. */
const maskOf = (array) => (array.length > 1 ? -1 : 0);

/** The bin width of a code. */
function scaledWidth(width, code) {
  const octave = Math.floor(code / 4);
  const scaled = width * QUARTERS[code - 4 * octave] * 2 ** octave;
  check(scaled >= 2 ** -1022 && scaled < Infinity, "a bin width that is not a normal double");
  return scaled;
}

function roundToBfloat16(values, rounded, count) {
  const float = new Float32Array(1);
  const bits = new Uint32Array(float.buffer);
  for (let at = 0; at < count; at++) {
    float[0] = values[at];
    rounded[at] = (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) >>> 16;
  }
}

// How often a half's last place is in 1, by its exponent, from that of the smallest normal on.
const UNITS = Float64Array.from({ length: 30 }, (_, at) => 2 ** (24 - at));

function roundToFloat16(values, rounded, count) {
  const double = new Float64Array(1);
  const words = new Uint32Array(double.buffer);
  for (let at = 0; at < count; at++) {
    double[0] = values[at];
    const sign = (words[1] >>> 16) & 0x8000;
    const exponent = Math.max(((words[1] >>> 20) & 0x7ff) - 1009, 0); // from that of the smallest normal on
    const units = Math.abs(values[at]) * UNITS[exponent] + 2 ** 52 - 2 ** 52; // to an integer, nearest even
    rounded[at] = sign | (units + exponent * 1024);
  }
}

// Codes

/**
 * Where the axes begin that make up a row: as many of the last ones as give it 2^15 weights at most.
 *
 * The last one that is longer than 1 is always among them, so that a row is never a single weight of many.
 */
function innerAxis(shape) {
  let cut = Math.max(shape.findLastIndex((length) => length > 1), 0);
  while (cut > 0 && product(shape.slice(cut - 1)) <= ROW) cut--;
  return cut;
}

/** How slices along some axes lie in a tensor, which is seen as rows. */
class Slices {
  constructor(shape, axes) {
    let count = 1;
    const strides = shape.map(() => 0); // of the number of a weight's slice
    axes = axes.filter((axis) => shape[axis] > 1); // along others there is a single slice
    for (const axis of [...axes].reverse()) {
      strides[axis] = count;
      count *= shape[axis];
    }
    const cut = innerAxis(shape);
    const all = shape.map((length, axis) => ({ length, stride: strides[axis] }));
    this.count = count;
    this.outer = all.slice(0, cut).reverse();
    this.variesByRow = axes.some((axis) => axis < cut);
    this.variesInRow = axes.some((axis) => axis >= cut);
    // In a row, the numbers of the weights' slices less that of the first one; a single 0 if they are all the same.
    this.offsets = new Int32Array(1);
    if (this.variesInRow) for (const axis of all.slice(cut)) this.offsets = offsetsAlong(axis, this.offsets);
  }

  /** The number of the slice of a row's first weight. */
  base(row) {
    let slice = 0;
    for (const { length, stride } of this.outer) {
      const next = Math.floor(row / length);
      slice += (row - next * length) * stride;
      row = next;
    }
    return slice;
  }
}

/** Offsets with one axis more, behind those that they are along. */
function offsetsAlong({ length, stride }, before) {
  const offsets = new Int32Array(before.length * length);
  for (let at = 0, to = 0; at < before.length; at++) {
    for (let index = 0; index < length; index++) offsets[to++] = before[at] + index * stride;
  }
  return offsets;
}

/**
 * Sums of the codes of weights over several arrays of codes, each of which may have a sign; those that occur are within
 * ±CODE_MAX.
 */
class CodeSums {
  static async open(shape, several, tooLarge, pause) {
    const sums = new CodeSums(shape, several, tooLarge);
    await sums.findGroups(product(shape) / sums.inner, pause);
    return sums;
  }

  constructor(shape, several, tooLarge) {
    const parts = several.map(({ axes, values, sign = 1 }) => ({ slices: new Slices(shape, axes), values, sign }));
    this.ofRows = parts.filter(({ slices }) => !slices.variesInRow);
    this.ofColumns = parts.filter(({ slices }) => slices.variesInRow);
    this.isFixed = !this.ofColumns.some(({ slices }) => slices.variesByRow); // the columns are those of all rows
    this.inner = product(shape.slice(innerAxis(shape)));
    this.columns = new Int32Array(this.ofColumns.length ? this.inner : 1);
    this.sums = new Float64Array(this.columns.length);
    this.tooLarge = tooLarge;
    this.row = -1;
    this.first = this.current = 0;
  }

  /** The sum of a row's first weight; in `columns` are those of all, less this one, or a single 0 for all of them. */
  base(row) {
    if (row === this.row) return this.current;
    if (this.row < 0 || !this.isFixed) this.setColumns(row);
    this.row = row;
    this.current = this.first;
    for (const { slices, values, sign } of this.ofRows) this.current += sign * values[slices.base(row)];
    return this.current;
  }

  setColumns(row) {
    const { sums, columns } = this;
    sums.fill(0);
    for (const { slices, values, sign } of this.ofColumns) {
      const base = slices.base(row);
      const { offsets } = slices;
      for (let at = 0; at < sums.length; at++) sums[at] += sign * values[base + offsets[at]];
    }
    this.first = sums[0];
    for (let at = 0; at < sums.length; at++) {
      const difference = sums[at] - sums[0];
      check(Math.abs(difference) <= 2 * CODE_MAX, this.tooLarge); // one of both is
      columns[at] = difference;
    }
  }

  /** Find the groups of weights that have the same sum, which is `group`, from the smallest on: `{group, count}`. */
  async findGroups(rows, pause) {
    const counts = new Float64Array(2 * CODE_MAX + 1); // how many weights have the sum -CODE_MAX, and so on
    const inRow = new Float64Array(4 * CODE_MAX + 1); // how many of a row have -2 * CODE_MAX in `columns`, and so on
    const { columns, inner } = this;
    const variesByRow = [...this.ofRows, ...this.ofColumns].some(({ slices }) => slices.variesByRow);
    const looked = variesByRow ? rows : 1; // the other rows have the same sums
    const each = (inner / columns.length) * (rows / looked); // weights that a column counts for
    let low, high;
    let steps = 0; // of the loops over columns, since `pause` was called
    for (let row = 0; row < looked; row++) {
      const base = this.base(row);
      if (row === 0 || !this.isFixed) {
        inRow.fill(0);
        low = high = 0;
        for (let at = 0; at < columns.length; at++) {
          const column = columns[at];
          inRow[column + 2 * CODE_MAX] += each;
          if (column < low) low = column;
          if (column > high) high = column;
        }
      }
      check(base + low >= -CODE_MAX && base + high <= CODE_MAX, this.tooLarge);
      for (let column = low; column <= high; column++) {
        counts[base + column + CODE_MAX] += inRow[column + 2 * CODE_MAX];
      }
      steps += columns.length + high - low;
      if (steps >= 2 ** 17) {
        await pause();
        steps = 0;
      }
    }
    this.groups = [];
    for (let at = 0; at < counts.length; at++) {
      if (counts[at]) this.groups.push({ group: at - CODE_MAX, count: counts[at] });
    }
  }
}

/** The codes in a section: `{axes, values, min, max}`. */
async function readCodes({ axes, count }, section, pause) {
  const bits = new Bits(section);
  const table = readTable(bits);
  const { symbols } = table;
  const rest = section.subarray(bits.finish());
  const values = integers(count, { low: symbols[0], high: symbols.at(-1) });
  if (symbols.length === 1) {
    check(!rest.length, "codes that are all the same have a stream");
    return { axes, values: values.fill(symbols[0]), min: symbols[0], max: symbols[0] };
  }
  const stream = new Stream(rest);
  let [min, max] = [Infinity, -Infinity];
  for (let begin = 0; begin < count; begin += STREAM_SYMBOLS) {
    const end = Math.min(begin + STREAM_SYMBOLS, count);
    stream.decode(table, values, begin, end);
    for (let at = begin; at < end; at++) {
      if (values[at] < min) min = values[at];
      if (values[at] > max) max = values[at];
    }
    await pause();
  }
  stream.finish();
  return { axes, values, min, max };
}

// Table

const TOO_LONG = "a table is longer than its symbols";

/** Reads bits, the most significant one of each byte first. */
class Bits {
  constructor(bytes) {
    this.bytes = bytes;
    this.position = 0;
  }

  bits(count) {
    let value = 0;
    for (let left = count; left > 0; left--) value = 2 * value + this.bit();
    return value;
  }

  bit() {
    const byte = this.position >> 3;
    check(byte < this.bytes.length, "a table is cut off");
    return (this.bytes[byte] >> (7 - (this.position++ & 7))) & 1;
  }

  /** EG(order); what is beyond 2^53, and refused by all who read it, is not exact. */
  golomb(order) {
    let zeros = -1;
    do check(++zeros <= 40 && !this.atEnd(), "a table holds an impossible code");
    while (!this.bit());
    return 2 ** (zeros + order) + this.bits(zeros + order) - 2 ** order;
  }

  /** SEG(order). */
  signedGolomb(order) {
    const value = this.golomb(order);
    return value % 2 ? -(value + 1) / 2 : value / 2;
  }

  /** The byte behind what was read, which 0 bits fill up. */
  finish() {
    while (this.position & 7) check(!this.bit(), TOO_LONG);
    return this.position >> 3;
  }

  atEnd() {
    return this.position >> 3 === this.bytes.length;
  }
}

/** A table, and the fill bits behind it. */
function readTable(bits) {
  const order = bits.bits(4);
  const count = bits.golomb(4) + 1;
  check(count <= TABLE_SYMBOLS, "a table has more symbols than allowed");
  const symbols = new Float64Array(count);
  const roots = new Float64Array(count);
  symbols[0] = bits.signedGolomb(4);
  roots[0] = bits.golomb(8) + 1;
  for (let at = 1; at < count; at++) {
    symbols[at] = symbols[at - 1] + bits.golomb(0) + 1;
    roots[at] = roots[at - 1] + bits.signedGolomb(order);
  }
  bits.finish();
  const isPossible = roots.every((root) => root >= 1 && root <= ROOT_MAX);
  check(isPossible && Math.max(-symbols[0], symbols[count - 1]) < SYMBOL_BOUND, "a table holds impossible values");
  const table = new Table(Int32Array.from(symbols));
  if (count > 1) table.setFrequencies(roots.map((root) => root * root));
  return table;
}

/** Symbols in use, and their frequencies. */
class Table {
  constructor(symbols) {
    this.symbols = symbols;
    this.starts = new Int32Array(symbols.length + 1); // where the frequencies of each begin among all, 2^24
    this.first = new Uint16Array(2 ** 12); // the first symbol in each of 2^12 pieces of these
  }

  /** Set the frequencies in proportion to masses, which are below 2^48. */
  setFrequencies(masses) {
    const { starts, first } = this;
    setQuotients(starts, masses, TOTAL - masses.length);
    let missing = TOTAL - masses.length;
    let largest = 0;
    for (let at = 0; at < masses.length; at++) {
      missing -= starts[at];
      if (starts[at] > starts[largest]) largest = at;
    }
    starts[largest] += missing;
    let start = 0;
    for (let at = 0, piece = 0; at < masses.length; at++) {
      const frequency = 1 + starts[at];
      starts[at] = start;
      start += frequency;
      for (; piece << 12 < start; piece++) first[piece] = at;
    }
    starts[masses.length] = TOTAL;
  }
}

/** Set quotients to floor(mass * spare / total), for the total of all masses. */
function setQuotients(quotients, masses, spare) {
  let total = 0;
  for (let at = 0; at < masses.length; at++) total += masses[at];
  if (total >= 2 ** 40) {
    const exact = masses.reduce((left, mass) => left + BigInt(mass), 0n);
    masses.forEach((mass, at) => (quotients[at] = Number((BigInt(mass) * BigInt(spare)) / exact)));
    return;
  }
  const high = Math.floor(spare / 4096); // two digits of 12 bits, so that no double is beyond 2^53
  const low = spare % 4096;
  for (let at = 0; at < masses.length; at++) {
    const mass = masses[at];
    const digit = Math.floor((mass * high) / total);
    const rest = mass * high - digit * total;
    quotients[at] = digit * 4096 + Math.floor((rest * 4096 + mass * low) / total);
  }
}

// Student

/** Symbols of the coding `student`. */
class StudentSymbols {
  static async open(entry, scales, magnitudes, stored, pause) {
    const symbols = new StudentSymbols(entry, stored);
    await symbols.findGroups(entry, scales, magnitudes, pause);
    return symbols;
  }

  constructor(entry, stored) {
    const bits = new Bits(stored);
    const [freedom, isRelative, lowBits] = [bits.bits(3), bits.bits(1), bits.bits(4)];
    const [scale, center, first] = [bits.signedGolomb(4), bits.signedGolomb(0), bits.signedGolomb(4)];
    const cells = bits.golomb(4) + 1;
    bits.finish();
    check(bits.atEnd(), "the numbers of a distribution are too long");
    const step = 2 ** lowBits;
    Object.assign(this, { isRelative, lowBits, scale, center, low: first * step, high: (first + cells) * step - 1 });
    const isPossible = freedom <= 5 && Math.abs(scale) <= CODE_MAX && cells >= 2 && cells <= CELLS;
    check(isPossible && Math.max(Math.abs(center), -this.low, this.high) < SYMBOL_BOUND,
          "a distribution has impossible numbers");
    this.degrees = 2 ** (freedom + 1);
    const terms = this.degrees / 2 - 1;
    this.factors = Float64Array.from({ length: terms }, (_, at) => (2 * (terms - at) - 1) / (2 * (terms - at)));
    this.half = entry.trellis ? 1 : 2;
    const symbols = new Int32Array(cells);
    for (let at = 0; at < cells; at++) symbols[at] = (first + at) * step;
    this.current = new Table(symbols);
    this.masses = new Float64Array(cells);
    this.group = undefined; // the context whose table is there
  }

  /** Find the contexts of weights, and the parts in which their symbols are stored. */
  async findGroups(entry, scales, magnitudes, pause) {
    const several = [...magnitudes, ...(this.isRelative ? scales.map((codes) => ({ ...codes, sign: -1 })) : [])];
    const tooLarge = `a magnitude beyond ±${CODE_MAX}`;
    const lowest = sum(several.map(({ min, max, sign }) => (sign === -1 ? -max : min)));
    const highest = sum(several.map(({ min, max, sign }) => (sign === -1 ? -min : max)));
    check(Math.max(-lowest, highest) <= CODE_MAX, tooLarge);
    this.sums = await CodeSums.open(entry.shape, several, tooLarge, pause);
    const { groups } = this.sums;
    for (const { group } of groups) check(Math.abs(this.scale + group) <= CODE_MAX, tooLarge);
    this.parts = partsOf(groups);
  }

  /** The table of a context, until that of another is asked for. */
  table(group) {
    if (group !== this.group) {
      this.group = group;
      this.findMasses(this.scale + group);
      this.current.setFrequencies(this.masses);
    }
    return this.current;
  }

  /** Find the masses of the cells at the scale of a code; the order of operations is part of the format. */
  findMasses(code) {
    const octave = Math.floor(code / 4);
    const sigma = QUARTERS[code - 4 * octave] * 2 ** octave;
    const { masses, low, center, half, degrees, factors } = this;
    const step = 2 ** this.lowBits;
    let before = 0;
    for (let at = 0; at <= masses.length; at++) {
      const x = (4 * (low + at * step - center) - half) / 4 / sigma;
      const r = Math.sqrt(degrees + x * x);
      const u = degrees / (r * r);
      let total = 1;
      for (let j = 0; j < factors.length; j++) total = 1 + total * u * factors[j];
      const share = 0.5 + ((x / r) * total) / 2;
      if (at > 0) masses[at - 1] = 1 + Math.floor(2 ** 32 * Math.max(share - before, 0));
      before = share;
    }
  }
}

// Stream

const NOT_HELD = "a stream does not hold the symbols it should";

/**
 * A decoder of rANS. Its 64-bit state is high * 2^48 + middle * 2^24 + low.
 *
 * A product of a frequency and one of these is below 2^48. Its low 24 bits are those of a product of 32-bit integers,
 * and those above are the integer part of a product of doubles, which is exact.
 */
class Stream {
  constructor(stored) {
    check(stored.length % 4 === 0, NOT_HELD);
    this.words = new Int32Array(stored.slice().buffer);
    this.left = this.words.length;
    check(!this.left || this.words[this.left - 1] !== 0, NOT_HELD);
    this.high = this.middle = this.low = 0;
    this.refill();
    this.refill();
  }

  /** Take the next word, if there is one; the state is below 2^32. */
  refill() {
    if (!this.left) return;
    const word = this.words[--this.left];
    this.high = (this.middle << 8) | (this.low >>> 16);
    this.middle = ((this.low & 0xffff) << 8) | (word >>> 24);
    this.low = word & 0xffffff;
  }

  /** Write the next symbols into `out` from `begin` to `end`. */
  decode({ symbols, starts, first }, out, begin, end) {
    const { words } = this;
    let { high, middle, low, left } = this;
    for (let at = begin; at < end; at++) {
      let index = first[low >>> 12];
      while (starts[index + 1] <= low) index++;
      out[at] = symbols[index];
      const start = starts[index];
      const frequency = starts[index + 1] - start;
      const share = frequency * 2 ** -24;
      low += (Math.imul(frequency, middle) & 0xffffff) - start;
      middle = ((share * middle) | 0) + (Math.imul(frequency, high) & 0xffffff) + (low >>> 24);
      high = ((share * high) | 0) + (middle >>> 24);
      low &= 0xffffff;
      middle &= 0xffffff;
      if ((high | (middle >>> 8)) === 0 && left > 0) {
        const word = words[--left];
        high = (middle << 8) | (low >>> 16);
        middle = ((low & 0xffff) << 8) | (word >>> 24);
        low = word & 0xffffff;
      }
    }
    Object.assign(this, { high, middle, low, left });
  }

  /** Add numbers of `bits` bits, all of the same frequency, to those of `out` from `begin` to `end`. */
  addLowBits(bits, out, begin, end) {
    const rest = 24 - bits;
    for (let at = begin; at < end; at++) {
      const { high, middle, low } = this;
      out[at] += low >>> rest;
      this.low = ((middle << rest) & 0xffffff) | (low & ((1 << rest) - 1));
      this.middle = (middle >>> bits) | ((high << rest) & 0xffffff);
      this.high = high >>> bits;
      if ((this.high | (this.middle >>> 8)) === 0) this.refill();
    }
  }

  finish() {
    check(!this.left && this.high === 0 && this.middle === 0 && this.low === 0, NOT_HELD);
  }
}

// Skeleton

/** The fields of ONNX's messages that lead to tensors, by their numbers: name, message, whether there are several. */
const MESSAGES = {
  Model: { 7: ["graph", "Graph"], 20: ["training_info", "Training", true], 25: ["functions", "Function", true] },
  Training: { 1: ["initialization", "Graph"], 2: ["algorithm", "Graph"] },
  Graph: {
    1: ["node", "Node", true],
    5: ["initializer", "Tensor", true],
    15: ["sparse_initializer", "Sparse", true],
  },
  Function: { 7: ["node", "Node", true], 11: ["attribute_proto", "Attribute", true] },
  Node: { 5: ["attribute", "Attribute", true] },
  Attribute: {
    5: ["t", "Tensor"],
    6: ["g", "Graph"],
    10: ["tensors", "Tensor", true],
    11: ["graphs", "Graph", true],
    22: ["sparse_tensor", "Sparse"],
    23: ["sparse_tensors", "Sparse", true],
  },
  Sparse: { 1: ["values", "Tensor"], 2: ["indices", "Tensor"] },
};
const TENSOR = { dims: 1, dataType: 2, rawData: 9, externalData: 13, dataLocation: 14 };
const TENSOR_DATA = [6, 9]; // fields that hold data, even if they are empty: strings and bytes
const TENSOR_NUMBERS = [4, 5, 7, 10, 11]; // lists of numbers, which may be empty
const MESSAGE_DEPTH = 100; // protobuf refuses more
const INLINE_BYTES = 1024; // smaller tensors stay in the model: onnxruntime infers shapes from some of them

/** Where the layers of an archive go in the bytes of its restored model, which are allocated here. */
function placeLayers(skeleton, layers, isExternal) {
  const wanted = new Map();
  const externalData = [];
  const files = new Map(); // layer → its external data, if it is not in the model alone
  for (const [index, layer] of layers.entries()) {
    const path = `layer-${index}.bin`;
    for (const place of layer.tensors) {
      const apart = isExternal && layer.bytes >= INLINE_BYTES && /^graph\.initializer\[\d+\]$/.test(place);
      wanted.set(place, { layer, path: apart ? path : undefined });
      if (apart && !files.has(layer)) {
        files.set(layer, { path, data: undefined });
        externalData.push(files.get(layer));
      }
    }
  }
  const walk = new Walk(skeleton, wanted);
  const pieces = walk.message(0, skeleton.length, "Model", "", 1);
  for (const [place, { isFound }] of wanted) check(isFound, `${place}: the skeleton holds nothing there`);
  const size = sum(pieces.map((piece) => piece.length ?? piece.layer.bytes));
  if (size >= MODEL_BYTES) {
    throw new LimitExceeded("a model above 2 GiB does not fit one file; restore it with externalData");
  }
  const model = new Uint8Array(size);
  const copies = new Map(layers.map((layer) => [layer, []])); // where its bytes are in the model
  let begin = 0;
  for (const piece of pieces) {
    if (piece.layer) copies.get(piece.layer).push(model.subarray(begin, begin + piece.layer.bytes));
    else model.set(piece, begin);
    begin += piece.length ?? piece.layer.bytes;
  }
  return {
    model,
    externalData,
    target: (layer) => (files.has(layer) ? new Uint8Array(layer.bytes) : copies.get(layer)[0]),
    put(layer, bytes) {
      for (const copy of copies.get(layer)) if (copy !== bytes) copy.set(bytes);
      if (files.has(layer)) files.get(layer).data = bytes;
      else if (bytes.buffer !== model.buffer) bytes.buffer.transfer?.(0); // frees it now, in engines since 2024
    },
  };
}

/** Walks through a serialized model, checks its tensors, and puts layers to their places. */
class Walk {
  constructor(bytes, wanted) {
    this.bytes = bytes;
    this.wanted = wanted;
  }

  /** A message with its layers, as pieces: bytes, or `{layer}`. */
  message(begin, end, kind, path, depth) {
    const pieces = [];
    const counts = {};
    let copied = begin;
    check(depth <= MESSAGE_DEPTH, "the skeleton is not an ONNX model");
    for (const field of this.fields(begin, end)) {
      const known = field.hasLength && MESSAGES[kind][field.number];
      if (!known) continue;
      const [name, message, isSeveral] = known;
      const count = counts[name] ?? 0;
      counts[name] = count + 1;
      // Protobuf merges a field that is there twice, but nothing writes one.
      check(isSeveral || !count, "the skeleton is not as protobuf writes it");
      const step = `${path}${path && "."}${name}${isSeveral ? `[${count}]` : ""}`;
      const inner = message === "Tensor" ? this.tensor(field.begin, field.end, step)
                                         : this.message(field.begin, field.end, message, step, depth + 1);
      if (inner.length === 1) continue; // nothing was put into it
      const size = sum(inner.map((piece) => piece.length ?? piece.layer.bytes));
      pieces.push(this.bytes.subarray(copied, field.start), fieldHead(field.number, size), ...inner);
      copied = field.end;
    }
    pieces.push(this.bytes.subarray(copied, end));
    return pieces;
  }

  tensor(begin, end, path) {
    const wanted = this.wanted.get(path);
    const { onnx } = DTYPES[wanted?.layer.dtype] ?? {};
    const dims = [];
    let dataType = 0;
    let hasData = false;
    let position = end; // where raw data goes: in the order of the fields' numbers
    for (const field of this.fields(begin, end)) {
      const isLocation = field.number === TENSOR.dataLocation && field.value === 1;
      check(!isLocation && field.number !== TENSOR.externalData, "the skeleton refers to external data");
      if (field.number === TENSOR.dims) dims.push(...(field.hasLength ? this.varints(field) : [field.value]));
      if (field.number === TENSOR.dataType) dataType = field.value;
      hasData ||= TENSOR_DATA.includes(field.number);
      hasData ||= TENSOR_NUMBERS.includes(field.number) && field.end > field.begin;
      if (field.number > TENSOR.rawData) position = Math.min(position, field.start);
    }
    if (!wanted) return [this.bytes.subarray(begin, end)];
    const { layer } = wanted;
    const fits = dims.join() === layer.shape.join() && dataType === onnx;
    if (!fits) throw new CorruptArchive(`layer ${quoted(layer.name)}: ${path} has another shape or type`);
    if (hasData) throw new CorruptArchive(`layer ${quoted(layer.name)}: ${path} holds data of its own`);
    wanted.isFound = true;
    if (wanted.path) return [this.bytes.subarray(begin, end), externalFields(wanted.path, layer.bytes)];
    const head = fieldHead(TENSOR.rawData, layer.bytes);
    return [this.bytes.subarray(begin, position), head, { layer }, this.bytes.subarray(position, end)];
  }

  *varints({ begin, end }) {
    while (begin < end) {
      const [value, next] = this.varint(begin, end);
      yield value;
      begin = next;
    }
  }

  /** The fields of a message: `begin` and `end` are those of what it holds, `start` that of the whole field. */
  *fields(begin, end) {
    while (begin < end) {
      const start = begin;
      let tag, value;
      [tag, begin] = this.varint(begin, end);
      const wire = tag % 8;
      let stop = begin;
      if (wire === 0) [value, stop] = this.varint(begin, end);
      else if (wire === 1) stop += 8;
      else if (wire === 5) stop += 4;
      else if (wire === 2) {
        [value, begin] = this.varint(begin, end);
        stop = begin + value;
      }
      check([0, 1, 2, 5].includes(wire) && tag >= 8 && stop <= end, "the skeleton is not an ONNX model");
      yield { number: Math.floor(tag / 8), start, begin, end: stop, hasLength: wire === 2, value };
      begin = stop;
    }
  }

  varint(begin, end) {
    let value = 0;
    for (let at = begin; at < end && at < begin + 10; at++) {
      value += (this.bytes[at] & 127) * 2 ** (7 * (at - begin));
      if (this.bytes[at] < 128) return [value, at + 1];
    }
    throw corrupt("the skeleton is not an ONNX model");
  }
}

/** What stands before the content of a field that has a length. */
function fieldHead(number, size) {
  return Uint8Array.from([...varintBytes(number * 8 + 2), ...varintBytes(size)]);
}

function varintBytes(value) {
  const bytes = [];
  for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
  return [...bytes, value];
}

/** The fields of a tensor whose data is all of a file. */
function externalFields(path, size) {
  const text = (number, value) => [...fieldHead(number, value.length), ...new TextEncoder().encode(value)];
  const entries = Object.entries({ location: path, offset: "0", length: String(size) }).flatMap(([key, value]) => {
    const entry = [...text(1, key), ...text(2, value)];
    return [...fieldHead(TENSOR.externalData, entry.length), ...entry];
  });
  return Uint8Array.from([...entries, TENSOR.dataLocation * 8, 1]);
}

// Workers

const WORKER_NAME = "riqz";
const threads = globalThis.process?.getBuiltinModule?.("node:worker_threads");

/** Workers that decode layers; each runs this module. */
class Pool {
  constructor(size) {
    this.jobs = new Map(); // number → its worker, and what resolves or rejects its promise
    this.error = undefined; // why no further layer can be decoded
    this.count = 0;
    this.workers = Array.from({ length: size }, () => this.startWorker());
    this.busy = new Map(this.workers.map((worker) => [worker, 0]));
  }

  startWorker() {
    const finish = ({ number, bytes, error }) => {
      const { worker, resolve, reject } = this.jobs.get(number);
      this.jobs.delete(number);
      this.busy.set(worker, this.busy.get(worker) - 1);
      if (error) reject(new (ERRORS[error.name] ?? Error)(error.message));
      else resolve(bytes);
    };
    const fail = (error) => {
      this.error = new Error(`a worker ended: ${error.message ?? "its script cannot be loaded"}`);
      for (const { reject } of this.jobs.values()) reject(this.error);
    };
    if (threads) {
      const worker = new threads.Worker(new URL(import.meta.url), { workerData: WORKER_NAME, execArgv: [] });
      worker.on("message", finish);
      worker.on("error", fail);
      return worker;
    }
    const worker = new Worker(new URL("./riqz.js", import.meta.url), { type: "module", name: WORKER_NAME });
    worker.onmessage = ({ data }) => finish(data);
    worker.onerror = fail;
    return worker;
  }

  /** A layer that the worker with the least to do decodes: `send` takes its sections, `finished` gives its bytes. */
  start(entry) {
    const number = this.count++;
    const worker = this.workers.reduce((least, other) => (this.busy.get(other) < this.busy.get(least) ? other : least));
    this.busy.set(worker, this.busy.get(worker) + 1);
    worker.postMessage({ number, entry });
    const send = (section) => {
      const copy = section.slice();
      worker.postMessage({ number, section: copy }, [copy.buffer]);
    };
    const bytes = new Promise((resolve, reject) => {
      this.jobs.set(number, { worker, resolve, reject });
      if (this.error) reject(this.error);
    });
    return { entry, send, finished: handled(bytes.then((bytes) => ({ bytes }))) };
  }

  close() {
    for (const worker of this.workers) worker.terminate();
  }
}

/** Decode the layers that a pool sends to this worker, section by section. */
function serve(post) {
  const layers = new Map(); // number → where the sections of a layer go
  return async ({ number, entry, section }) => {
    if (section) {
      layers.get(number)?.enqueue(section); // unless the layer has failed
      return;
    }
    const reader = new ReadableStream({ start: (controller) => layers.set(number, controller) }).getReader();
    try {
      const bytes = new Uint8Array(entry.bytes);
      await decodeLayer(entry, async () => (await reader.read()).value, bytes, async () => {});
      post({ number, bytes }, [bytes.buffer]);
    } catch ({ name, message }) {
      post({ number, error: { name, message } });
    }
    layers.delete(number);
  };
}

if (threads?.workerData === WORKER_NAME) {
  threads.parentPort.on("message", serve((message, moved) => threads.parentPort.postMessage(message, moved)));
} else if (typeof WorkerGlobalScope !== "undefined" && globalThis.name === WORKER_NAME) {
  const answer = serve((message, moved) => globalThis.postMessage(message, moved));
  globalThis.onmessage = ({ data }) => answer(data);
}
