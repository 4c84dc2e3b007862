//! Bytes in flight, shared by all connections of a server.
//!
//! The rule that keeps a client from starving the others (the "dynamic threshold" of shared-memory switches,
//! Choudhury and Hahne 1998): a connection never holds more than it leaves free. One greedy client gets half of the
//! memory, n of them leave 1 / (n + 1), so that there is always some for the next small request.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use wb_core::sync::WaitQueue;

/// Bytes of a server, for all its threads.
pub(super) struct Budget {
    total: u64,
    used: AtomicU64,
    released: WaitQueue,
}

impl Budget {
    pub(super) fn new(total: u64) -> Arc<Budget> {
        Arc::new(Budget { total, used: AtomicU64::new(0), released: WaitQueue::new() })
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
        assert!(bytes <= self.limit && bytes <= self.budget.total / 2, "a charge that can ever be granted");
        match self.try_charge(bytes) {
            Some(charge) => charge,
            None => self.budget.released.wait_until(|| self.try_charge(bytes)).await,
        }
    }

    fn try_charge(self: &Rc<Account>, bytes: u64) -> Option<Charge> {
        let held = self.held.get() + bytes;
        if held > self.limit {
            return None;
        }
        let budget = &self.budget;
        let grant = |used: u64| (held <= budget.total.saturating_sub(used + bytes)).then_some(used + bytes);
        budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grant).ok()?;
        self.held.set(held);
        Some(Charge { account: self.clone(), bytes })
    }
}

/// Bytes that are held; given back when dropped.
pub(super) struct Charge {
    account: Rc<Account>,
    bytes: u64,
}

impl Charge {
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
    fn greedy_connections_always_leave_something() {
        let budget = Budget::new(128 << 20);
        let mut held = Vec::new();
        for _ in 0..20 {
            let account = Account::new(&budget, 64 << 20);
            let before = budget.used();
            while let Some(charge) = account.try_charge(64 << 10) {
                held.push(charge);
            }
            assert!(budget.used() > before || budget.total - before < 128 << 10);
        }
        let honest = Account::new(&budget, 64 << 20);
        assert!(honest.try_charge(4096).is_some(), "{} bytes are left", budget.total - budget.used());
        drop(held);
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn the_largest_request_fits_an_idle_server_and_counts_once() {
        let budget = Budget::new(64 << 20);
        let account = Account::new(&budget, 32 << 20);
        let mut charge = account.try_charge(32 << 20).expect("idle");
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
            let budget = Budget::new(100);
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
