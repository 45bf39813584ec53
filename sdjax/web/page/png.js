// Text in PNG files. Pictures of the server come with theirs; only sheets, which the page composes, are given one here.

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc(bytes) {
  let sum = 0xffffffff;
  for (const byte of bytes) sum = TABLE[(sum ^ byte) & 255] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

/** Returns a copy of a PNG (a Blob) with `text` under `keyword`: an iTXt chunk before its end, the last 12 bytes. */
export async function withText(png, keyword, text) {
  const bytes = new Uint8Array(await png.arrayBuffer());
  const body = new TextEncoder().encode(`iTXt${keyword}\0\0\0\0\0${text}`);
  const chunk = new Uint8Array(body.length + 8);
  const view = new DataView(chunk.buffer);
  view.setUint32(0, body.length - 4);
  chunk.set(body, 4);
  view.setUint32(body.length + 4, crc(body));
  return new Blob([bytes.subarray(0, -12), chunk, bytes.subarray(-12)], { type: "image/png" });
}
