// Search of a site that is opened from a folder. A browser starts no worker for a page of file:,
// so the worker's code runs in a hidden frame, and messages go between frame and page.
"use strict";
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      const load = (source) => new Promise((loaded, failed) => {
        const script = inside.document.createElement("script");
        Object.assign(script, { src: source, onload: loaded, onerror: failed });
        inside.document.body.append(script);
      });
      inside.postMessage = (data) => this.receive(data);
      inside.importScripts = (...sources) =>
        sources.reduce((before, source) => before.then(() => load(source)), Promise.resolve());
      this.started = load(url);
    }

    receive(data) {
      const event = new MessageEvent("message", { data: structuredClone(data) });
      this.dispatchEvent(event);
      this.onmessage?.(event);
    }

    postMessage(data) {
      const event = { data: structuredClone(data) };
      this.started.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", event)));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
