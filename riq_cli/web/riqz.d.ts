/** Where an archive comes from. Streams are decoded while they arrive. */
export type Source =
  | Response
  | Blob
  | ReadableStream<Uint8Array>
  | AsyncIterable<Uint8Array>
  | ArrayBuffer
  | ArrayBufferView;

export interface Progress {
  /** Bytes of the archive that have been read. */
  received: number;
  /** Bytes of the archive. */
  total: number;
  /** Weights that have been decoded. */
  decoded: number;
  /** Weights of all layers. */
  weights: number;
}

export interface Options {
  /** Stops decoding; its reason is thrown. */
  signal?: AbortSignal;
  /** Called after every section that has been read, and after every layer that has been decoded. */
  onProgress?: (progress: Progress) => void;
  /** Bound on the bytes of the restored model. Default: 8 GiB. */
  maxSize?: number;
  /** Number of workers that decode. Default: 0, the calling thread decodes. */
  workers?: number;
}

/** The restored weights of one tensor. */
export interface Layer {
  name: string;
  /** Types of the operators that use it. */
  op: string;
  /** Its places in the model, such as `graph.initializer[3]`. */
  tensors: string[];
  dtype: "float16" | "bfloat16" | "float32" | "float64";
  shape: number[];
  coding: "ans" | "student" | "constant" | "raw";
  /** Row-major; float16 and bfloat16 as their bits. */
  values: Uint16Array | Float32Array | Float64Array;
}

export interface Model {
  /** The bytes of the ONNX file. */
  model: Uint8Array;
  /** Weights beside it, as onnxruntime-web's option of the same name takes them; empty unless asked for. */
  externalData: { path: string; data: Uint8Array }[];
}

/**
 * The layers of an archive, one after another, each as soon as its bytes have arrived and are decoded.
 *
 * Throws an `ArchiveError`, the reason of `signal`, or an error of the source.
 */
export function decode(source: Source, options?: Options): AsyncGenerator<Layer, void, void>;

/**
 * The restored model.
 *
 * With `externalData`, large initializers of the graph are beside the model instead of in it.
 *
 * Throws as `decode` does, and `LimitExceeded` for a model above 2 GiB without `externalData`.
 */
export function restore(source: Source, options?: Options & { externalData?: boolean }): Promise<Model>;

/** The source of an archive, or undefined if there is none. */
export type Read = (path: string) => Source | undefined | Promise<Source | undefined>;

/**
 * A cache for transformers.js, as its `env.customCache`: asked for `model.onnx`, it restores `model.riqz` beside it.
 *
 * By default, `read` fetches the archive.
 */
export function riqCache(options?: Options & { read?: Read }): {
  match(path: string): Promise<Response | undefined>;
  put(): Promise<void>;
};

/** The archive cannot be decoded. */
export class ArchiveError extends Error {}

/** The bytes do not begin as a riq archive does. */
export class NotAnArchive extends ArchiveError {}

/** The archive needs a newer riq. */
export class UnsupportedArchive extends ArchiveError {}

/** The archive is damaged or was made to mislead. */
export class CorruptArchive extends ArchiveError {}

/** Restoring would need more memory than the limit allows. */
export class LimitExceeded extends ArchiveError {}
