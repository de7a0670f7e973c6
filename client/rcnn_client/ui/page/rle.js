// Decodes COCO's compressed run-length codes of masks.

// Lengths of the runs along the picture's columns, alternately outside and inside the mask.
function readRuns(counts) {
  const runs = [];
  for (let position = 0; position < counts.length; ) {
    let value = 0;
    let shift = 0;
    let digit;
    do {
      digit = counts.charCodeAt(position++) - 48;
      value |= (digit & 0x1f) << shift;
      shift += 5;
    } while (digit & 0x20);
    if (digit & 0x10) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

// The smallest part of the picture that contains the mask: `inside` is 1 in the mask, in rows of `width`; null if it is empty.
export function decodeRle({ size: [height], counts }) {
  const spans = [];
  let start = 0;
  readRuns(counts).forEach((length, index) => {
    if (index % 2 && length) spans.push([start, start + length]);
    start += length;
  });
  if (!spans.length) return null;

  const left = Math.floor(spans[0][0] / height);
  const right = Math.floor((spans[spans.length - 1][1] - 1) / height);
  let top = height;
  let bottom = 0;
  for (const [first, end] of spans) {
    const isOneColumn = Math.floor(first / height) === Math.floor((end - 1) / height);
    top = Math.min(top, isOneColumn ? first % height : 0);
    bottom = Math.max(bottom, isOneColumn ? (end - 1) % height : height - 1);
  }
  const width = right - left + 1;
  const inside = new Uint8Array(width * (bottom - top + 1));
  for (const [first, end] of spans) {
    for (let pixel = first; pixel < end; pixel++) {
      const column = Math.floor(pixel / height);
      inside[(pixel - column * height - top) * width + column - left] = 1;
    }
  }
  return { left, top, width, height: bottom - top + 1, inside };
}
