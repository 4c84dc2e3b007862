//! Bytes in flight, shared by all connections of a server.
//!
//! Rules that keep greedy clients from starving the others (after the "dynamic threshold" of shared-memory switches,
//! Choudhury and Hahne 1998): a connection that holds something gets more only if it leaves free as much as it then
//! holds, and a quarter of the whole. One that holds nothing always gets the smallest charge, half of what is free, or
//! the longest request if an eighth of the whole stays free. So one greedy client gets half of the memory, several
//! share three quarters, and the rest goes in small portions to those that come later. What [`super::pressure`] does
//! comes after that.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wb_core::sync::WaitQueue;

/// Bytes of a server, for all its threads.
pub(super) struct Budget {
    total: u64,
    /// The smallest charge.
    unit: u64,
    used: AtomicU64,
    released: WaitQueue,
}

impl Budget {
    pub(super) fn new(total: u64, unit: u64) -> Arc<Budget> {
        Arc::new(Budget { total, unit, used: AtomicU64::new(0), released: WaitQueue::new() })
    }

    /// The largest charge that an idle server grants.
    pub(super) fn charge_max(&self) -> u64 {
        self.total - self.total / 8
    }

    fn grants(&self, held: u64, used: u64, bytes: u64) -> bool {
        let Some(free) = self.total.checked_sub(used + bytes) else { return false };
        match held {
            0 => bytes <= self.unit || bytes <= free || free >= self.total / 8,
            _ => held + bytes <= free && free >= self.total / 4,
        }
    }

    /// Bytes in use.
    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// The part of a budget that one connection holds. Stays on its thread.
pub(super) struct Account {
    budget: Arc<Budget>,
    limit: u64,
    held: Cell<u64>,
}

impl Account {
    pub(super) fn new(budget: &Arc<Budget>, limit: u64) -> Rc<Account> {
        Rc::new(Account { budget: budget.clone(), limit, held: Cell::new(0) })
    }

    /// Waits until `bytes` may be held as well. They must fit the limits of an idle server. One charge is made at
    /// once or not at all, so that nobody waits for the second half of what it needs.
    pub(super) async fn charge(self: &Rc<Account>, bytes: u64) -> Charge {
        assert!(bytes <= self.limit.min(self.budget.charge_max()), "a charge that can ever be granted");
        match self.try_charge(bytes) {
            Some(charge) => charge,
            None => self.budget.released.wait_until(|| self.try_charge(bytes)).await,
        }
    }

    /// The same without waiting.
    pub(super) fn try_charge(self: &Rc<Account>, bytes: u64) -> Option<Charge> {
        let (held, budget) = (self.held.get(), &self.budget);
        if held + bytes > self.limit {
            return None;
        }
        let grant = |used| budget.grants(held, used, bytes).then_some(used + bytes);
        budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant).ok()?;
        self.held.set(held + bytes);
        Some(Charge { account: self.clone(), bytes })
    }
}

/// Bytes that are held; given back when dropped.
pub(super) struct Charge {
    account: Rc<Account>,
    bytes: u64,
}

impl Charge {
    /// Bytes that are held.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a part out, to be given back on its own.
    pub(super) fn split(&mut self, bytes: u64) -> Charge {
        assert!(bytes <= self.bytes, "a part of the charge");
        self.bytes -= bytes;
        Charge { account: self.account.clone(), bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.account.held.set(self.account.held.get() - self.bytes);
            self.account.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
            self.account.budget.released.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn greedy_connections_leave_small_portions_to_those_that_come_later() {
        let unit = 4096;
        let budget = Budget::new(2048 * unit, unit);
        let mut held = Vec::new();
        for number in 0..500 {
            let account = Account::new(&budget, 2048 * unit);
            let before = budget.used();
            // Some begin with a request that is as long as it may be.
            held.extend((number % 2 == 0).then(|| account.try_charge(1024 * unit)).flatten());
            while let Some(charge) = account.try_charge(unit) {
                held.push(charge);
            }
            assert!(budget.used() > before, "number {number} got nothing");
        }
        drop(held);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_largest_request_fits_an_idle_server_and_counts_once() {
        let budget = Budget::new(64 << 20, 4096);
        let busy = Account::new(&budget, 32 << 20).try_charge(20 << 20).expect("idle");
        let account = Account::new(&budget, 32 << 20);
        let mut charge = account.try_charge(32 << 20).expect("an eighth is left");
        drop(busy);
        assert!(account.try_charge(1).is_none(), "the connection's own limit");
        let part = charge.split(1 << 20);
        drop(charge);
        assert_eq!((budget.used(), account.held.get()), (1 << 20, 1 << 20));
        drop(part);
        assert_eq!((budget.used(), account.held.get()), (0, 0));
    }

    proptest! {
        #[test]
        fn sums_are_exact(ops in proptest::collection::vec((0usize..4, 1u64..40, any::<bool>()), 0..200)) {
            let budget = Budget::new(100, 1);
            let accounts: Vec<_> = (0..4).map(|_| Account::new(&budget, 50)).collect();
            let mut held: Vec<Vec<Charge>> = (0..4).map(|_| Vec::new()).collect();
            for (who, bytes, take) in ops {
                if take {
                    held[who].extend(accounts[who].try_charge(bytes));
                } else {
                    held[who].pop();
                }
                let sums: Vec<u64> = held.iter().map(|held| held.iter().map(|charge| charge.bytes).sum()).collect();
                prop_assert_eq!(budget.used(), sums.iter().sum::<u64>());
                prop_assert!(budget.used() <= 100);
                for (account, sum) in accounts.iter().zip(sums) {
                    prop_assert_eq!(account.held.get(), sum);
                }
            }
        }
    }
}
