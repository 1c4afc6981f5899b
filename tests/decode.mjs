// Decodes archives with riq_cli/web/riqz.js for tests/test_web.py.
//
// From stdin comes a JSON list of requests: {data, how, options}, where data is base64, and how is `decode` or `restore`.
// To stdout goes a list of answers: what came out, with SHA-256 in place of bytes, or {error, message}.
import { createHash } from "node:crypto";
import { text } from "node:stream/consumers";
import { decode, restore } from "../riq_cli/web/riqz.js";

const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

const hows = {
  async decode(data, options) {
    const layers = [];
    for await (const { name, dtype, shape, coding, tensors, values } of decode(data, options)) {
      layers.push({ name, dtype, shape, coding, places: tensors, sha256: sha256(values) });
    }
    return { layers };
  },
  async restore(data, options) {
    const { model } = await restore(data, options);
    return { model: sha256(model) };
  },
};

const answers = [];
for (const { data, how, options } of JSON.parse(await text(process.stdin))) {
  const failed = ({ name, message }) => ({ error: name, message });
  answers.push(await hows[how](Buffer.from(data, "base64"), options).catch(failed));
}
console.log(JSON.stringify(answers));
