//! Waiting for whatever comes first of two.

use std::future::Future;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

/// Which of two came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First<A, B> {
    /// The first of the two.
    One(A),
    /// The second.
    Other(B),
}

/// Waits for `one` or `other`, and drops the one that is not done. `one` is looked at first.
pub async fn first<A: Future, B: Future>(one: A, other: B) -> First<A::Output, B::Output> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|cx| match one.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(First::One(output)),
        Poll::Pending => other.as_mut().poll(cx).map(First::Other),
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::future::ready;

    use super::*;
    use crate::Executor;

    #[test]
    fn first_is_the_one_that_is_done() {
        let ex = Executor::new().expect("an executor");
        let one = ex.run_until(first(ready(1), ready(2)));
        assert_eq!(one.expect("it runs"), First::One(1));
        let other = ex.run_until(first(pending::<i32>(), ready(2)));
        assert_eq!(other.expect("it runs"), First::Other(2));
    }
}
