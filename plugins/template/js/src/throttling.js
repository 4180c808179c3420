// Gives each recipient domain so many messages a second, at each upstream.

import { domainOf, policy } from './wavegate/policy.js';

// The most rates that one answer may name.
const MAX_RATES = 64;

let quantity = 0n;
let burst = 0n;

export const lifecycle = policy((settings) => {
  quantity = BigInt(settings.per_second ?? 50);
  burst = BigInt(settings.burst ?? quantity);
});

export const throttling = {
  // Only names the limits. The relay keeps the counts, for all its workers together.
  limits(attempt) {
    const keys = new Set();
    for (const index of attempt.recipients) {
      const domain = domainOf(attempt.transaction.recipients[index]).toLowerCase();
      if (keys.size < MAX_RATES) keys.add(`${attempt.upstream}/${domain}`);
    }
    const rate = (key) => ({ key, quantity, perMs: 1000n, burst, cost: 1n });
    return { rates: [...keys].map(rate), concurrency: [] };
  },

  observe() {
    return [];
  },
};
