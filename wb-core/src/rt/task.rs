//! Tasks: futures on the queue of a thread.

use super::executor::Core;
use async_task::{Builder, Task};
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// A task that was spawned; a future of its result. Dropping it detaches the task, which goes on.
pub struct JoinHandle<T> {
    /// `None` only while being dropped.
    task: Option<Task<T>>,
    /// The result may be bound to its thread.
    _local: PhantomData<Rc<()>>,
}

impl<T> JoinHandle<T> {
    /// True once the task has ended.
    pub fn is_finished(&self) -> bool {
        self.task.as_ref().is_some_and(Task::is_finished)
    }

    /// Stops the task at its next wait and drops its future; the result if it had already ended.
    pub async fn cancel(mut self) -> Option<T> {
        self.task.take()?.cancel().await
    }
}

impl<T> Future for JoinHandle<T> {
    type Output = T;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        Pin::new(self.task.as_mut().expect("present until dropped")).poll(cx)
    }
}

impl<T> Drop for JoinHandle<T> {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.detach();
        }
    }
}

/// Takes a task off the list of the living when its future is dropped.
struct Registration {
    core: Rc<Core>,
    key: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let waker = self.core.tasks.borrow_mut().try_remove(self.key);
        drop(waker);
    }
}

/// Puts a future on the queue of its thread.
pub(super) fn spawn_on<F>(core: &Rc<Core>, future: F) -> JoinHandle<F::Output>
where
    F: Future + 'static,
    F::Output: 'static,
{
    let key = core.tasks.borrow().vacant_key();
    let registration = Registration { core: core.clone(), key };
    let tracked = async move {
        let _registration = registration;
        future.await
    };
    let shared = core.shared.clone();
    let schedule = move |runnable| super::executor::schedule(&shared, runnable);
    // SAFETY: the future is not `Send`; its `Runnable` goes to the queue of this thread's runtime, from whatever thread it
    // is woken, and is run and dropped there: `Core::drop_tasks` empties the queue until no future is left before the
    // runtime ends, and `schedule` forgets a runnable that comes later. The future is 'static, and so are its borrows.
    // `schedule` is `Send`, `Sync` and 'static.
    let (runnable, task) =
        unsafe { Builder::new().propagate_panic(false).spawn_unchecked(move |()| tracked, schedule) };
    assert!(core.tasks.borrow_mut().insert(runnable.waker()) == key, "nothing was spawned in between");
    runnable.schedule();
    JoinHandle { task: Some(task), _local: PhantomData }
}
