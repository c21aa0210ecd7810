"use strict";
for (const button of document.querySelectorAll("button.copy")) {
  button.addEventListener("click", async () => {
    const code = document.getElementById(button.dataset.from);
    const label = button.textContent;
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      // Without leave to use the clipboard the text is marked, ready for the keyboard.
      getSelection().selectAllChildren(code);
      button.textContent = "Marked: press Ctrl+C";
    }
    setTimeout(() => { button.textContent = label; }, 2500);
  });
}
// A drawn figure does not shrink by itself: on paper it is drawn again, as wide as A4 and Letter.
const redraw = (size) => {
  for (const place of document.querySelectorAll(".plot")) Plotly.relayout(place, size);
};
addEventListener("beforeprint", () => redraw({ width: 680, autosize: false }));
addEventListener("afterprint", () => redraw({ width: null, autosize: true }));
