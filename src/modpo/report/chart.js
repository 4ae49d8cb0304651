// Draws the chart in the page's own colours, and again when the reader's setting changes.
const spec = JSON.parse(document.getElementById("chart-data").textContent);
const look = {
  margin: {l: 60, r: 20, t: 20, b: 60},
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: {family: "system-ui, sans-serif", size: 12},
  legend: {orientation: "h", y: -0.12, yanchor: "top"},
  hoverlabel: {align: "left"},
  modebar: {bgcolor: "rgba(0,0,0,0)", color: "#9aa1a9", activecolor: "#5b8def"},
};
const config = {
  displaylogo: false,
  responsive: true,
  // only these: among plotly's own choice is a button that sends the data to a server
  modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]],
  plotlyServerURL: "",
};
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
const drawn = Plotly.newPlot(chart, spec.data, {...look, ...spec.layout}, config).then(recolour);
dark.addEventListener("change", recolour);
