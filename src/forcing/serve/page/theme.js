// Before the first paint: the colours that were chosen here last time.
try {
  document.documentElement.dataset.theme = localStorage.getItem("theme") ?? "auto";
} catch {
  document.documentElement.dataset.theme = "auto"; // nothing may be kept here
}
