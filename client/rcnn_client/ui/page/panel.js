// The side panel: classes, the list of detections, times, and details of the model.

const element = (id) => document.getElementById(id);

function make(tag, text = "", properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

function fillPairs(list, pairs) {
  list.replaceChildren(...pairs.flatMap(([name, value]) => [make("dt", name), make("dd", value)]));
}

// A square in a colour: an SVG attribute, as the page's policy allows no style attributes.
function swatch(colour) {
  const namespace = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(namespace, "svg");
  const square = document.createElementNS(namespace, "rect");
  for (const [name, value] of [["width", "100%"], ["height", "100%"], ["fill", colour]]) square.setAttribute(name, value);
  svg.setAttribute("class", "swatch");
  svg.setAttribute("aria-hidden", "true");
  svg.append(square);
  return svg;
}

// A checkbox for each class; `unwanted` is the set of those that are switched off.
export function showClasses(detections, info, unwanted, onChange) {
  const labels = new Map(detections.map((each) => [each.class_name, each.label]));
  element("classes").hidden = !labels.size;
  const boxes = [...labels].sort(([, a], [, b]) => a - b).map(([name, number]) => {
    const checkbox = make("input", "", { type: "checkbox", checked: !unwanted.has(name) });
    checkbox.addEventListener("change", () => {
      if (checkbox.checked) unwanted.delete(name);
      else unwanted.add(name);
      onChange();
    });
    const label = make("label");
    label.append(checkbox, swatch(info.class_colours[number]), name);
    return label;
  });
  element("class-list").replaceChildren(...boxes);
}

export function showList(detections, info) {
  element("table-scroll").hidden = !detections.length;
  const rows = detections.map(({ class_name: name, label, score, box }) => {
    const row = make("tr");
    const first = make("td");
    first.append(swatch(info.class_colours[label]), name);
    row.append(first, make("td", score.toFixed(3)), make("td", box.map((edge) => edge.toFixed(0)).join(", ")));
    return row;
  });
  element("rows").replaceChildren(...rows);
}

const ms = (value) => `${value.toFixed(1)} ms`;

export function showTiming(timing) {
  element("timing").hidden = !timing;
  if (!timing) return;
  const mean = timing.num_requests > 1 ? ` (mean of ${timing.num_requests} requests)` : "";
  fillPairs(element("timing"), [
    ["Answered after", ms(timing.total_ms)],
    ["Network", ms(timing.network_ms)],
    ["Queue", ms(timing.queue_ms) + mean],
    ["Compute", ms(timing.compute_ms) + mean],
    ...timing.steps.map(({ name, compute_ms: compute }) => [`· ${name}`, ms(compute)]),
  ]);
}

export function showInfo(info) {
  const classes = info.class_names.slice(1);
  fillPairs(element("info-list"), [
    ["Server", info.server],
    ["Engine", [info.engine, info.precision].filter(Boolean).join(", ")],
    ["Versions", info.versions.join(", ")],
    ["Returns", ["boxes", info.has_masks && "masks", info.keypoint_names.length && "keypoints"].filter(Boolean).join(", ")],
    ["Most detections", `${info.max_detections}`],
    ["Largest picture", info.max_image_pixels ? `${(info.max_image_pixels / 1e6).toFixed(0)} megapixels` : "unknown"],
    ["Classes", `${classes.length}: ${classes.join(", ")}`],
  ]);
  element("info").hidden = false;
}
