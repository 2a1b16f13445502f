"use strict";
const { charts, explorer } = JSON.parse(document.getElementById("page-data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");

// --- charts: drawn again when the reader changes between light and dark ---

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function themed(chart) {
  const ink = colour("--ink"), line = colour("--line");
  const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink, family: "inherit" },
    margin: { l: 56, r: 12, t: 12, b: 56 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" }, hovermode: "closest",
    ...chart.layout, xaxis: { ...axis, ...chart.layout.xaxis }, yaxis: { ...axis, ...chart.layout.yaxis },
  };
  const shown = chart.choices[document.querySelector(`select[data-chart="${chart.name}"]`)?.value];
  const traces = chart.traces.map((trace, number) => ({
    ...trace, visible: !shown || shown.includes(number),
    marker: { ...trace.marker, color: trace.marker.color === "ink" ? ink : trace.marker.color },
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

// --- images: by kind, estimator and class, or one by its id ---

if (explorer) {
  const form = document.getElementById("explorer"), tiles = document.getElementById("tiles");
  const found = document.getElementById("found"), meaning = document.getElementById("meaning");
  const { kind, estimator, id } = form.elements, ofClass = form.elements.class;
  const number = Object.fromEntries(explorer.estimators.map(({ name }, i) => [name, i]));

  function option(select, value, text) {
    select.append(new Option(text, value));
  }

  option(ofClass, "", "all");
  explorer.classes.forEach((name, c) => option(ofClass, c, name));

  function offer() {
    const before = estimator.value;
    estimator.replaceChildren();
    for (const { name } of explorer.estimators) if (explorer.lists[kind.value][name]) option(estimator, name, name);
    if ([...estimator.options].some(({ value }) => value === before)) estimator.value = before;
  }

  function tile(sample) {
    const [c, ...scores] = explorer.samples[sample], name = estimator.value, score = scores[number[name]];
    const entry = document.createElement("li"), image = new Image(), text = document.createElement("p");
    image.src = explorer.images[sample];
    image.alt = `sample ${sample}, class ${explorer.classes[c]}`;
    text.textContent = `${sample}: ${score === null ? "never seen" : score.toFixed(2)}`;
    entry.title = explorer.estimators.map(({ name }, i) => `${name} ${scores[i]}`).join("\n");
    entry.dataset.sample = sample;
    entry.append(image, text);
    return entry;
  }

  function row(heading, samples) {
    const title = document.createElement("h3"), list = document.createElement("ul");
    title.textContent = heading;
    list.className = "tiles";
    list.append(...samples.map(tile));
    tiles.append(title, list);
  }

  function show() {
    const about = explorer.estimators[number[estimator.value]], wanted = id.value.trim();
    meaning.textContent = `${about.name}: ${about.meaning}; ${about.hard_is} is hard.`;
    tiles.replaceChildren();
    if (wanted) {
      const known = Object.hasOwn(explorer.samples, wanted);
      found.textContent = known ? `Sample ${wanted}.` : `Sample ${wanted} is not among the images in this page.`;
      if (known) row(explorer.classes[explorer.samples[wanted][0]], [wanted]);
      return;
    }
    let total = 0;
    explorer.lists[kind.value][about.name].forEach((samples, c) => {
      if (!samples.length || (ofClass.value && Number(ofClass.value) !== c)) return;
      total += samples.length;
      row(explorer.classes[c], samples);
    });
    found.textContent = `${total} images.`;
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  kind.addEventListener("change", () => { offer(); show(); });
  for (const control of [estimator, ofClass]) control.addEventListener("change", show);
  id.addEventListener("input", show);
  offer();
  show();
}
