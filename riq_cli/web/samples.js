/** Files that a visitor drops, or that lie beside the page → feeds: objects of input name → {type, dims, data}. */

const ARRAYS = {
  bool: Uint8Array,
  int8: Int8Array,
  uint8: Uint8Array,
  int16: Int16Array,
  uint16: Uint16Array,
  int32: Int32Array,
  uint32: Uint32Array,
  int64: BigInt64Array,
  uint64: BigUint64Array,
  float16: Uint16Array, // as bits
  float32: Float32Array,
  float64: Float64Array,
};
const FREE_PIXELS = 1024;
const FREE_STEP = 32;
const NUMPY = { b1: "bool", f2: "float16", f4: "float32", f8: "float64" };
for (const bytes of [1, 2, 4, 8]) {
  NUMPY[`i${bytes}`] = `int${8 * bytes}`;
  NUMPY[`u${bytes}`] = `uint${8 * bytes}`;
}

/**
 * The feeds in a file, one for each sample.
 *
 * `file`: a File: .npz, .npy, or an image.
 * `inputs`: those of the model: `{name, type, shape}`; a free dimension is a string.
 * `preparation`: how an image becomes an input: `{mean, std, scale, channel_order, image_layout}`, as in riq compress.
 */
export async function readFeeds(file, inputs, preparation) {
  const head = new Uint8Array(await file.slice(0, 6).arrayBuffer());
  if (startsWith(head, ZIP)) return cut(await readNpz(file), inputs);
  if (startsWith(head, NPY)) {
    if (inputs.length !== 1) throw new Error(`the model has ${inputs.length} inputs; give an .npz file`);
    return cut(new Map([[inputs[0].name, readNpy(new Uint8Array(await file.arrayBuffer()))]]), inputs);
  }
  return [await imageFeed(file, inputs, preparation)];
}

/** An input in words: its name, type and shape. */
export const described = ({ name, type, shape }) => `${name} (${type}, ${shape.join("×") || "one number"})`;

// Images

/** Whether the model's input is one image, with channels where `preparation` has them. */
export function takesImage(inputs, { image_layout: layout }) {
  if (inputs.length !== 1) return false;
  const [{ shape }] = inputs;
  return shape.length === 4 && [1, 3].includes(shape[layout === "nchw" ? 1 : 3]);
}

async function imageFeed(file, inputs, preparation) {
  if (!takesImage(inputs, preparation)) {
    throw new Error(`the model takes no image, but ${inputs.map(described).join(", ")}; drop an .npz file`);
  }
  const { mean, std, scale, channel_order: order, image_layout: layout } = preparation;
  const [input] = inputs;
  const isFirst = layout === "nchw"; // channels come first
  const channels = input.shape[isFirst ? 1 : 3];
  const picture = await createImageBitmap(file).catch(() => {
    throw new Error(`${file.name}: is neither an .npz or .npy file nor an image`);
  });
  // A free size is that of the picture, within bounds, and a multiple of what convolutional networks divide it by.
  const factor = Math.min(1, FREE_PIXELS / Math.max(picture.width, picture.height));
  const free = (own) => FREE_STEP * Math.ceil((own * factor) / FREE_STEP);
  const sizeOf = (axis, own) => (typeof input.shape[axis] === "number" ? input.shape[axis] : free(own));
  const height = sizeOf(isFirst ? 2 : 1, picture.height);
  const width = sizeOf(isFirst ? 3 : 2, picture.width);
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "white"; // behind what is transparent
  context.fillRect(0, 0, width, height);
  context.drawImage(picture, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const area = width * height;
  const values = new Float64Array(channels * area);
  const isFloat = input.type.startsWith("float");
  for (let channel = 0; channel < channels; channel++) {
    const from = order === "bgr" ? 2 - channel : channel;
    const subtracted = mean[channel % mean.length];
    const divisor = std[channel % std.length];
    for (let at = 0; at < area; at++) {
      const grey = 0.299 * rgba[4 * at] + 0.587 * rgba[4 * at + 1] + 0.114 * rgba[4 * at + 2];
      const pixel = channels === 3 ? rgba[4 * at + from] : Math.round(grey);
      const value = isFloat ? (pixel * scale - subtracted) / divisor : pixel;
      values[isFirst ? channel * area + at : at * channels + channel] = value;
    }
  }
  const dims = isFirst ? [1, channels, height, width] : [1, height, width, channels];
  return { [input.name]: converted({ type: "float64", dims, data: values }, input) };
}

// Arrays

/** Feeds from arrays by input name: each is cut along its first axis, unless it is one sample, which stands for all. */
function cut(arrays, inputs) {
  if (arrays.size === 1 && inputs.length === 1 && arrays.has("arr_0")) arrays.set(inputs[0].name, arrays.get("arr_0"));
  const parts = inputs.map((input) => {
    const array = arrays.get(input.name);
    if (!array) {
      const names = [...arrays.keys()].join(", ");
      throw new Error(`the file holds ${names}; the model takes ${inputs.map(described).join(", ")}`);
    }
    return rowsOf(converted(array, input), input);
  });
  const count = Math.max(...parts.map((rows) => rows.length));
  for (const rows of parts) {
    if (rows.length !== count && rows.length !== 1) throw new Error("the arrays hold different numbers of samples");
  }
  return Array.from({ length: count }, (_, sample) =>
    Object.fromEntries(parts.map((rows, at) => [inputs[at].name, rows[rows.length === 1 ? 0 : sample]])),
  );
}

/** The samples in an array; with one axis more than the input has, each row is a whole input. */
function rowsOf({ type, dims, data }, input) {
  const { length } = input.shape;
  const isStacked = dims.length === length + 1;
  const batch = typeof input.shape[0] === "number" ? input.shape[0] : 1;
  const whole = isStacked ? dims.slice(1) : [batch, ...dims.slice(1)];
  const fits = (dim, axis) => typeof input.shape[axis] !== "number" || input.shape[axis] === dim;
  if (!isStacked && dims.length !== length || (length && !whole.every(fits)) || (!isStacked && dims[0] % batch)) {
    throw new Error(`an array of shape ${dims.join("×")} does not fit ${described(input)}`);
  }
  if (!isStacked && !length) return [{ type, dims, data }];
  const size = whole.reduce((product, dim) => product * dim, 1);
  const count = isStacked ? dims[0] : dims[0] / batch;
  if (!count) throw new Error(`the array for ${input.name} holds no samples`);
  const part = (at) => data.subarray(at * size, (at + 1) * size);
  return Array.from({ length: count }, (_, at) => ({ type, dims: whole, data: part(at) }));
}

/** An array in the type of an input. */
function converted({ type, dims, data }, input) {
  if (type === input.type) return { type, dims, data };
  const Values = ARRAYS[input.type];
  if (!Values || [type, input.type].includes("float16")) throw new Error(`${type} was given for ${described(input)}`);
  const isBig = Values === BigInt64Array || Values === BigUint64Array;
  const convert = isBig ? (value) => BigInt(value) : input.type === "bool" ? (value) => Boolean(value) : Number;
  return { type: input.type, dims, data: Values.from(data, convert) };
}

// Files of NumPy

const ZIP = [0x50, 0x4b, 0x03, 0x04];
const NPY = [0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59];
const startsWith = (bytes, magic) => magic.every((byte, at) => bytes[at] === byte);

/** The arrays in an .npz file by name. */
export async function readNpz(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  const view = new DataView(bytes.buffer);
  let end = bytes.length - 22; // of the directory of the zip file; a comment may follow
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("the .npz file is cut off");
  const arrays = new Map();
  let at = view.getUint32(end + 16, true);
  for (let left = view.getUint16(end + 10, true); left > 0; left--) {
    const [method, stored] = [view.getUint16(at + 10, true), view.getUint32(at + 20, true)];
    const [nameLength, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    const local = view.getUint32(at + 42, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength));
    const begin = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    const data = bytes.slice(begin, begin + stored);
    if (name.endsWith(".npy")) arrays.set(name.slice(0, -4), readNpy(method ? await inflated(data) : data));
    at += 46 + nameLength + extra + comment;
  }
  return arrays;
}

async function inflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** The array in an .npy file: `{type, dims, data}`. */
function readNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const [start, length] = bytes[6] === 1 ? [10, view.getUint16(8, true)] : [12, view.getUint32(8, true)];
  const header = new TextDecoder("latin1").decode(bytes.subarray(start, start + length));
  const [, order, kind] = /'descr': '(.)(\w+)'/.exec(header) ?? [];
  const type = NUMPY[kind];
  if (!type || order === ">") throw new Error(`arrays of the type ${order}${kind} cannot be read`);
  const dims = /'shape': \(([\d, ]*)\)/.exec(header)[1].split(",").filter((dim) => dim.trim()).map(Number);
  const Values = ARRAYS[type];
  const data = new Values(bytes.slice(start + length).buffer);
  return { type, dims, data: /'fortran_order': True/.test(header) ? rowMajor(data, dims) : data };
}

/** The values of an array whose first axis runs fastest, row-major. */
function rowMajor(data, dims) {
  const result = new data.constructor(data.length);
  const index = dims.map(() => 0);
  const strides = dims.map((_, axis) => dims.slice(0, axis).reduce((product, dim) => product * dim, 1));
  for (let at = 0; at < result.length; at++) {
    result[at] = data[index.reduce((sum, position, axis) => sum + position * strides[axis], 0)];
    for (let axis = dims.length - 1; axis >= 0 && ++index[axis] === dims[axis]; axis--) index[axis] = 0;
  }
  return result;
}
