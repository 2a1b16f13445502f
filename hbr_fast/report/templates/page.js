"use strict";
const { charts } = JSON.parse(document.getElementById("page-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

// --- charts: redrawn when the reader switches between light and dark ---

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function themed(chart) {
  const ink = colour("--ink"), inked = (named) => (named === "ink" ? ink : named), line = colour("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const titled = (own) => ({ ...axis, ...own, title: { standoff: 10, ...own.title } });
  // Room above the plot for a legend that shows every arm.
  const named = chart.traces.filter(({ type, showlegend }) => type === "scatter" && showlegend !== false);
  const arms = new Set(named.map(({ name }) => name)), longest = Math.max(0, ...[...arms].map(({ length }) => length));
  const columns = Math.max(1, Math.floor((document.getElementById(chart.name).clientWidth - 70) / (40 + 6.5 * longest)));
  const layout = {
    height: 350 + 20 * Math.ceil(arms.size / columns),
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "inherit" },
    margin: { l: 56, r: 12, t: 12, b: 56 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", maxheight: 1 }, hovermode: "closest",
    ...chart.layout, xaxis: titled(chart.layout.xaxis), yaxis: titled(chart.layout.yaxis),
  };
  const shown = chart.choices[document.querySelector(`select[data-chart="${chart.name}"]`)?.value];
  const traces = chart.traces.map((trace, number) => ({
    ...trace, visible: !shown || shown.includes(number),
    ...(trace.marker && { marker: { ...trace.marker, color: inked(trace.marker.color) } }),
    ...(trace.line && { line: { ...trace.line, color: inked(trace.line.color) } }),
    ...(trace.colorscale && { colorscale: trace.colorscale[dark.matches ? "dark" : "light"] }),
  }));
  return [traces, layout];
}

function draw(chart) {
  Plotly.react(chart.name, ...themed(chart), { responsive: true, displaylogo: false });
}

for (const chart of charts) {
  draw(chart);
  document.querySelector(`select[data-chart="${chart.name}"]`)?.addEventListener("change", () => draw(chart));
}
dark.addEventListener("change", () => charts.forEach(draw));

// --- tables: a click on a heading sorts by its column ---

function valueOf(row, column) {
  const text = row.cells[column].textContent.replaceAll(",", ""), number = Number.parseFloat(text);
  return Number.isNaN(number) ? text : number;
}

function sort(table, column, button) {
  const numbers = [...table.tBodies[0].rows].some((row) => typeof valueOf(row, column) === "number");
  const first = numbers ? "descending" : "ascending", then = numbers ? "ascending" : "descending";
  const falling = button.dataset.order === first ? then : first;
  for (const other of table.querySelectorAll("th button")) {
    delete other.dataset.order;
    other.closest("th").removeAttribute("aria-sort");
  }
  button.dataset.order = falling;
  button.closest("th").setAttribute("aria-sort", falling);
  const sign = falling === "descending" ? -1 : 1, body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => {
    const one = valueOf(a, column), other = valueOf(b, column);
    if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;  // "n/a" comes last
    return sign * (typeof one === "number" ? one - other : one.localeCompare(other, "en", { numeric: true }));
  }));
}

for (const table of document.querySelectorAll("main table")) {
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    button.addEventListener("click", () => sort(table, column, button));
    head.replaceChildren(button);
  });
}

// --- samples: filtered, in the order of a score, a screenful at a time ---

if (typeof hbrSamples !== "undefined") {
  const SCREENFUL = 60, samples = hbrSamples, { sheet } = samples;
  const form = document.getElementById("browser"), tiles = document.getElementById("tiles");
  const found = document.getElementById("found"), meaning = document.getElementById("meaning");
  const more = document.getElementById("more");
  const { order, estimator, search, low, high, suspected, mistaken, changed } = form.elements, ofClass = form.elements.class;
  let rest = [];

  ofClass.append(new Option("all", ""));
  samples.classes.forEach((name, c) => ofClass.append(new Option(name, c)));
  for (const { name } of samples.estimators) estimator.append(new Option(name, name));
  if (!samples.scores.aum) suspected.disabled = true;
  if (samples.predicted.every((c) => c < 0)) mistaken.disabled = true;
  if (samples.changed.every((arms) => !arms)) changed.disabled = true;

  // A sheet of thumbnails is loaded when one of its images comes into view.
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      target.style.backgroundImage = `url("${sheet.folder}/${target.dataset.sheet}.webp")`;
      seen.unobserve(target);
    }
  }, { rootMargin: "200px" });

  function thumbnail(i) {
    const image = document.createElement("div"), place = i % sheet.per_sheet;
    const scale = Math.max(1, Math.floor(84 / Math.max(sheet.width, sheet.height)));
    image.className = "thumbnail";
    image.setAttribute("role", "img");
    image.dataset.sheet = Math.floor(i / sheet.per_sheet);
    image.style.width = `${sheet.width * scale}px`;
    image.style.height = `${sheet.height * scale}px`;
    image.style.backgroundSize = `${sheet.width * sheet.columns * scale}px auto`;
    image.style.backgroundPosition =
      `${-(place % sheet.columns) * sheet.width * scale}px ${-Math.floor(place / sheet.columns) * sheet.height * scale}px`;
    seen.observe(image);
    return image;
  }

  function line(text, kind) {
    const made = document.createElement("p");
    made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  function tile(i) {
    const entry = document.createElement("li"), image = thumbnail(i), name = samples.classes[samples.class[i]];
    const score = samples.scores[estimator.value][i], guess = samples.classes[samples.predicted[i]];
    const source = samples.sources?.[i];
    image.setAttribute("aria-label", `sample ${samples.ids[i]}, class ${name}${guess ? `, predicted ${guess}` : ""}`);
    entry.dataset.sample = samples.ids[i];
    entry.append(image, line(`${samples.ids[i]}: ${score === null ? "never seen" : score.toFixed(2)}`));
    entry.append(line(name, "source"));
    if (guess && guess !== name) entry.append(line(`as ${guess}`, "source"));
    const changes = samples.changed[i].split("; ").filter(Boolean);
    if (changes.length) entry.append(line(changes.length > 1 ? `${changes.length} arms differ` : changes[0], "changes"));
    if (source) entry.append(line(source.split("/").at(-1), "source"));
    const facts = samples.estimators.map((about) => `${about.name} ${samples.scores[about.name][i]}`);
    entry.title = [...(source ? [source] : []), ...changes, ...facts].join("\n");
    return entry;
  }

  function grow() {
    tiles.append(...rest.splice(0, SCREENFUL).map(tile));
    more.hidden = rest.length === 0;
    more.textContent = `Show more (${rest.length.toLocaleString("en")} left)`;
  }

  function show() {
    const about = samples.estimators.find(({ name }) => name === estimator.value), scores = samples.scores[about.name];
    const words = search.value.trim().toLowerCase();
    const least = low.value === "" ? -Infinity : Number(low.value), most = high.value === "" ? Infinity : Number(high.value);
    const sign = (about.hard_is === "low") === (order.value === "hardest") ? 1 : -1;
    meaning.textContent = `${about.name}: ${about.meaning}; ${about.hard_is} is hard.`;
    rest = samples.ids.map((_, i) => i).filter((i) =>
      (ofClass.value === "" || samples.class[i] === Number(ofClass.value))
      && (!words || String(samples.ids[i]) === words || samples.sources?.[i]?.toLowerCase().includes(words))
      && (!suspected.checked || (samples.scores.aum[i] !== null && samples.scores.aum[i] < 0))
      && (!mistaken.checked || (samples.predicted[i] >= 0 && samples.predicted[i] !== samples.class[i]))
      && (!changed.checked || samples.changed[i])
      && (scores[i] === null ? low.value === "" && high.value === "" : scores[i] >= least && scores[i] <= most));
    // Never seen samples come last.
    rest.sort((a, b) => (scores[a] === null) - (scores[b] === null) || sign * (scores[a] - scores[b]) || a - b);
    const held = samples.ids.length.toLocaleString("en");
    const all = rest.length === samples.ids.length, some = rest.length.toLocaleString("en");
    const counted = samples.total > samples.ids.length
      ? `${all ? `The ${held}` : `${some} of the ${held}`} hardest samples, as many of each class, of ${samples.total.toLocaleString("en")} in all`
      : `${some} of ${held} samples`;
    const known = samples.predicted.filter((guess) => guess >= 0).length;
    const few = (mistaken.checked || changed.checked) && known < samples.ids.length
      ? ` Predictions are known for ${known.toLocaleString("en")} samples, the hardest of each class.` : "";
    found.textContent = `${counted}.${few}`;
    tiles.replaceChildren();
    grow();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", show);
  more.addEventListener("click", grow);
  show();
}
