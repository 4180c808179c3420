// Sends large messages to an upstream of their own, and has no opinion about others.

import { policy } from './wavegate/policy.js';

let upstream;
let largerThan = 0n;

export const lifecycle = policy((settings, upstreams, wrong) => {
  upstream = settings.upstream;
  largerThan = BigInt(settings.larger_than ?? 1_000_000);
  if (upstream !== undefined && !upstreams.includes(upstream)) {
    wrong('upstream', `"${upstream}" is no upstream; there are: ${upstreams.join(', ')}`);
  }
});

export const routing = {
  route(message) {
    if (upstream === undefined || message.size <= largerThan) return { tag: 'abstain' };
    return { tag: 'all', val: { upstream, fallbacks: [] } };
  },
};
