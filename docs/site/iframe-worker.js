// Browsers start no worker for a page that was opened from disk: there the search runs in a hidden frame instead.
if (location.protocol === "file:")
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.srcdoc = `<script src="${url}"></script>`;
      this.started = new Promise((start) => (this.frame.onload = start)).then(() => {
        this.frame.contentWindow.postMessage = (data) => setTimeout(() => this.onmessage?.({ data: structuredClone(data) }));
      });
      document.documentElement.append(this.frame);
    }
    postMessage(data) {
      const copy = structuredClone(data);
      this.started.then(() => this.frame.contentWindow?.onmessage({ data: copy }));
    }
    terminate() {
      this.frame.remove();
    }
  };
