// SPDX-License-Identifier: GPL-2.0-or-later
// Search in pages that are read as files. Browsers start no worker from a file: its script runs in a
// hidden frame instead, which sends and receives the same messages.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      const inner = (this.inner = frame.contentWindow);
      const load = (place) =>
        new Promise((resolve, reject) => {
          const script = inner.document.createElement("script");
          script.src = place;
          script.onload = resolve;
          script.onerror = reject;
          inner.document.body.append(script);
        });
      inner.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      inner.importScripts = (...places) =>
        places.reduce((before, place) => before.then(() => load(place)), Promise.resolve());
      this.isLoaded = load(new URL(url, location.href).href);
    }
    postMessage(data) {
      this.isLoaded.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
  window.Worker = window.IFrameWorker;
}
