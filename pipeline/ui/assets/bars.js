// Waveform bars as one SVG path, in a viewBox `peaks.length` wide and 2 high.
const bars = (peaks) =>
  peaks.map((peak, i) => {
    const half = Math.max(peak, 0.015);
    return `M${i + 0.15},${1 - half}h0.7v${2 * half}h-0.7Z`;
  }).join("");

const drawBars = (svg, peaks) => {
  svg.setAttribute("viewBox", `0 0 ${Math.max(peaks.length, 1)} 2`);
  for (const path of svg.querySelectorAll("path")) path.setAttribute("d", bars(peaks));
};

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

const clock = (seconds) => {
  const tenths = Math.round(seconds * 10);
  return `${Math.floor(tenths / 600)}:${((tenths % 600) / 10).toFixed(1).padStart(4, "0")}`;
};
