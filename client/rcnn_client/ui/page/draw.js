// Draws detections on their picture, like rcnn_client.draw_detections.

import { decodeRle } from "./rle.js";

const MASK_OPACITY = 110; // out of 255
const MIDDLE = "#3cd26e"; // of limbs that join both sides of a body
const MAX_CANVAS_PIXELS = 16e6; // some phones refuse more
const masks = new WeakMap(); // detection -> its mask, drawn once

export function canvasScale(bitmap) {
  return Math.min(1, Math.sqrt(MAX_CANVAS_PIXELS / (bitmap.width * bitmap.height)));
}

// `detections`: the best first. `info`: the answer of /models/MODEL, with the colours.
export function draw(canvas, bitmap, detections, info) {
  const scale = canvasScale(bitmap);
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  const shortSide = Math.min(bitmap.width, bitmap.height);
  const lineWidth = Math.max(2, Math.round(shortSide / 250));
  const labels = placeLabels(context, detections, info, bitmap, Math.max(11, Math.round(shortSide / 32)), lineWidth + 1);

  context.scale(scale, scale);
  const worstFirst = [...detections].reverse(); // the best is drawn on top
  for (const each of worstFirst) drawMask(context, each, info.class_colours[each.label]);
  context.lineWidth = lineWidth;
  for (const { box, label } of worstFirst) {
    const [x1, y1, x2, y2] = box.map(Math.round);
    context.strokeStyle = info.class_colours[label];
    const inset = lineWidth / 2;
    context.strokeRect(x1 + inset, y1 + inset, Math.max(0, x2 - x1 - lineWidth), Math.max(0, y2 - y1 - lineWidth));
  }
  for (const each of worstFirst) drawKeypoints(context, each, info, lineWidth);
  for (const label of labels.reverse()) drawLabel(context, label);
}

function drawMask(context, detection, colour) {
  if (!detection.segmentation) return;
  if (!masks.has(detection)) masks.set(detection, paintMask(detection.segmentation, colour));
  const painted = masks.get(detection);
  if (painted) context.drawImage(painted.canvas, painted.left, painted.top);
}

// Translucent, with an opaque outline.
function paintMask(segmentation, colour) {
  const mask = decodeRle(segmentation);
  if (!mask) return null;
  const { left, top, width, height, inside } = mask;
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const image = new ImageData(width, height);
  for (let index = 0; index < inside.length; index++) {
    if (!inside[index]) continue;
    const column = index % width;
    const isInner = column > 0 && column < width - 1 && inside[index - 1] && inside[index + 1]
      && inside[index - width] && inside[index + width];
    image.data.set([red, green, blue, isInner ? MASK_OPACITY : 255], 4 * index);
  }
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.getContext("2d").putImageData(image, 0, 0);
  return { canvas, left, top };
}

function drawKeypoints(context, { keypoints = [] }, { keypoint_colours: colours, limbs }, lineWidth) {
  const points = [];
  for (let at = 0; at < keypoints.length; at += 3) points.push(keypoints.slice(at, at + 3));
  context.lineWidth = Math.round(1.5 * lineWidth);
  for (const [a, b] of limbs) {
    if (!(points[a]?.[2] > 0 && points[b]?.[2] > 0)) continue;
    context.strokeStyle = colours[a] === colours[b] ? colours[a] : MIDDLE;
    context.beginPath();
    context.moveTo(points[a][0], points[a][1]);
    context.lineTo(points[b][0], points[b][1]);
    context.stroke();
  }
  points.forEach(([x, y, visibility], number) => {
    if (!(visibility > 0)) return;
    for (const [radius, colour] of [[1.2 * lineWidth + Math.max(1, lineWidth / 3), "#fff"], [1.2 * lineWidth, colours[number]]]) {
      context.fillStyle = colour;
      context.beginPath();
      context.arc(x, y, radius, 0, 2 * Math.PI);
      context.fill();
    }
  });
  context.lineWidth = lineWidth;
}

// Places each label at its box, inside the picture and, if there is room, not on the label of a better detection.
function placeLabels(context, detections, info, { width, height }, fontSize, padding) {
  const taken = [];
  return detections.map(({ class_name: name, score, label, box: [x1, y1, x2, y2] }) => {
    const text = `${name} ${score.toFixed(2)}`;
    const font = `${fontSize}px system-ui, sans-serif`;
    context.font = font;
    const w = Math.min(width, context.measureText(text).width + 2 * padding);
    const h = 1.2 * fontSize + 2 * padding;
    const corners = [[x1, y1 - h], [x2 - w, y1 - h], [x1, y1], [x1, y2], [x2 - w, y2], [x1, y2 - h]];
    const places = corners.map(([x, y]) => ({
      x: Math.max(0, Math.min(Math.round(x), width - w)),
      y: Math.max(0, Math.min(Math.round(y), height - h)),
    }));
    const isFree = ({ x, y }) => !taken.some((other) => x < other.x + other.w && other.x < x + w && y < other.y + h && other.y < y + h);
    const place = { ...(places.find(isFree) ?? places[0]), w, h };
    taken.push(place);
    return { ...place, text, font, padding, colour: info.class_colours[label] };
  });
}

function drawLabel(context, { x, y, w, h, text, font, padding, colour }) {
  context.fillStyle = colour;
  context.fillRect(x, y, w, h);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  context.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 120 ? "#000" : "#fff"; // ITU-R BT.601
  context.font = font;
  context.textBaseline = "middle";
  context.fillText(text, x + padding, y + h / 2, w - 2 * padding);
}
