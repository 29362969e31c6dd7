// Keeps what was scanned until the server can be reached.

export interface Scan {
  code: string;
  at: number;
}

/** How long to wait before the next attempt, in milliseconds; doubles up to five minutes. */
const FIRST_WAIT = 2_000;

/** Scans that wait for the network, oldest first. */
export class OfflineQueue {
  private waiting: Scan[] = [];
  private wait = FIRST_WAIT;

  /** Adds an item; it is stored on the phone before this returns. */
  push(scan: Scan): void {
    this.waiting.push(scan);
    localStorage.setItem("waiting", JSON.stringify(this.waiting));
  }

  /** Sends all of them, and tries again later while the network is down. */
  async flush(send: (scan: Scan) => Promise<boolean>): Promise<void> {
    while (this.waiting.length > 0) {
      if (!(await send(this.waiting[0]))) {
        this.wait = Math.min(this.wait * 2, 300_000);
        setTimeout(() => void this.flush(send), this.wait);
        return;
      }
      this.waiting.shift();
      this.wait = FIRST_WAIT;
    }
  }
}
