// The numbers and the slider write the address; the address decides what is shown (view.py).
// Here and not on the server, so that quick keys cannot overtake each other on the way.
"use strict";
(() => {
  const whole = (text) => {
    const digits = String(text ?? "").replace(/[\s,_]/g, "");
    return /^\d{1,15}$/.test(digits) ? Number(digits) : null;
  };
  const blank = (text) => String(text ?? "").trim() === "";

  function steps(params, moved, start, stop, span, last) {
    let from = whole(params.get("start")) ?? 0;
    let to = whole(params.get("stop"));
    if (moved.has("span")) [from, to] = span;
    if (moved.has("start")) from = blank(start) ? 0 : whole(start) ?? from;
    if (moved.has("stop")) to = blank(stop) ? null : whole(stop) ?? to;
    if (to !== null && to >= last) to = null;
    // Of two that exclude each other the one that moved counts.
    if (to !== null && to <= from) moved.has("stop") ? (from = 0) : (to = null);
    return [from, to];
  }

  function write(layer, expert, start, stop, span, last, search, told) {
    const context = window.dash_clientside.callback_context;
    const values = { layer, expert, start, stop, span };
    // A value that the server wrote, for an address that may be an old one by now, is no move.
    const isEcho = (id) => JSON.stringify(values[id]) === JSON.stringify((told ?? {})[id]);
    const ids = context.triggered.map((t) => t.prop_id.split(".")[0]);
    const moved = new Set(ids.filter((id) => !isEcho(id)));
    const params = new URLSearchParams(search ?? "");
    const before = params.toString();
    const set = (name, value) => (value ? params.set(name, String(value)) : params.delete(name));
    if (moved.has("layer") && whole(layer) !== null) set("layer", whole(layer));
    if (moved.has("expert") && whole(expert) !== null) set("expert", whole(expert));
    if (moved.has("span") || moved.has("start") || moved.has("stop")) {
      const [from, to] = steps(params, moved, start, stop, span, last);
      set("start", from);
      set("stop", to);
      // What was typed and is no number, or leaves all as it was, is put right.
      const say = window.dash_clientside.set_props;
      if (moved.has("start") && start !== String(from)) say("start", { value: String(from) });
      const end = to === null ? "" : String(to);
      if (moved.has("stop") && stop !== end) say("stop", { value: end });
    }
    const after = params.toString();
    if (after !== before) window.dash_clientside.set_props("url", { search: `?${after}` });
  }

  window.dash_clientside = Object.assign({}, window.dash_clientside, { workbench: { write } });
})();
