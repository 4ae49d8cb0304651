// Draws the chart in the page's own colours, and again when the reader's setting changes.
const spec = JSON.parse(document.getElementById("chart-data").textContent);
const chart = document.getElementById("chart");
const rings = spec.data.flatMap((trace, i) => trace.meta === "ring" ? [i] : []);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
function recolour() {
  const style = getComputedStyle(document.documentElement);
  const ink = style.getPropertyValue("--ink").trim();
  const rule = style.getPropertyValue("--rule").trim();
  const changes = {"font.color": ink};
  for (const key of Object.keys(spec.layout).filter((key) => /^[xy]axis/.test(key))) {
    changes[key + ".gridcolor"] = rule;
    changes[key + ".linecolor"] = rule;
    changes[key + ".tickcolor"] = rule;
  }
  return Plotly.update(chart, {"marker.color": ink}, changes, rings);
}
const drawn = Plotly.newPlot(chart, spec.data, spec.layout, spec.config).then(recolour);
dark.addEventListener("change", recolour);
