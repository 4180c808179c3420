// Holds mail of instances that are being upgraded, and of sender domains that the operator names.

import { domainOf, pattern, policy } from './wavegate/policy.js';

let domains = [];
let heldReason = '';

export const lifecycle = policy((settings) => {
  domains = (settings.domains ?? []).map(pattern);
  heldReason = settings.reason ?? 'held by the operator';
});

export const freeze = {
  decide(message) {
    const instance = message.instance;
    // A phase that is not known here is a later relay's: holding loses nothing.
    const known = ['unscheduled', 'scheduled', 'releasing', 'migrated', 'rolled-back'];
    if (instance && !known.includes(instance.phase)) {
      const closes = instance.window?.closes;
      const until = closes > message.now ? closes : undefined;
      return hold(until, `instance ${instance.name} is being upgraded`);
    }
    const domain = domainOf(message.sender);
    if (domains.some((matches) => matches(domain))) {
      // Until something changes, such as these settings.
      return hold(undefined, heldReason);
    }
    return { tag: 'proceed' };
  },
};

function hold(until, reason) {
  return { tag: 'hold', val: { until, reason } };
}
