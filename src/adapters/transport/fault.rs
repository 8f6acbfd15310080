//! What callers see of a call that brought no usable answer: one statement for every REST adapter.

use crate::adapters::adapter::AdapterError;
use crate::adapters::adapter::Effect;
use crate::adapters::adapter::Retry;
use crate::adapters::transport::TransportError;
use crate::model::FaultKind;
use crate::model::PublicText;
use crate::public_text;

impl TransportError {
    /// The failure of a call that may have had an effect. Of a read, the adapter sets the effect to none.
    #[must_use]
    pub fn to_adapter_error(&self) -> AdapterError {
        let (kind, retry, text) = match self {
            Self::Unreachable(_) => (
                FaultKind::Unavailable,
                Retry::Temporary,
                public_text!(
                    "The VM manager is unreachable; nothing was changed. Try again later."
                ),
            ),
            Self::Untrusted(_) => (
                FaultKind::BackendFailed,
                Retry::Permanent,
                public_text!(
                    "The VM manager presented a certificate that the gateway does not trust; nothing was changed. Ask an \
                     operator to check the certificate configured for this backend."
                ),
            ),
            Self::Unsendable(_) => (
                FaultKind::Invalid,
                Retry::Permanent,
                public_text!(
                    "The request cannot be expressed for this VM manager; nothing was changed. Check the ids in the request."
                ),
            ),
            Self::TooLate => (
                FaultKind::TimedOut,
                Retry::Temporary,
                public_text!(
                    "The time limit was reached before the VM manager was asked; nothing was changed. Try again later."
                ),
            ),
            Self::TimedOut => (FaultKind::TimedOut, Retry::Temporary, timed_out_text()),
            Self::Lost(_) => (
                FaultKind::Unavailable,
                Retry::Temporary,
                public_text!("The connection to the VM manager was lost before it answered."),
            ),
            Self::TooLarge(_) => (
                FaultKind::BackendFailed,
                Retry::Permanent,
                public_text!("The answer of the VM manager exceeds the size limit of the gateway."),
            ),
        };
        let mut error = AdapterError::refused(kind, text);
        error.retry = retry;
        // The caller learns from the Status whether the change took place: here it is only known whether it was sent.
        error.effect = if self.was_sent() {
            Effect::Possible
        } else {
            Effect::None
        };
        error
    }
}

/// The failure of a call whose answer has another form than the VM manager's interface promises.
#[must_use]
pub fn unexpected_answer() -> AdapterError {
    AdapterError::uncertain(
        FaultKind::BackendFailed,
        public_text!("The VM manager sent an invalid answer. Ask an operator to check its logs."),
    )
}

/// The sentence for a VM manager that did not answer within the time limit.
#[must_use]
pub fn timed_out_text() -> PublicText {
    public_text!("The VM manager did not answer within the time limit.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_that_were_not_sent_have_no_effect() {
        let text = String::new;
        let (none, possible) = (Effect::None, Effect::Possible);
        let rows = [
            (TransportError::Unreachable(text()), none, Retry::Temporary),
            (TransportError::Untrusted(text()), none, Retry::Permanent),
            (TransportError::Unsendable(text()), none, Retry::Permanent),
            (TransportError::TooLate, none, Retry::Temporary),
            (TransportError::TimedOut, possible, Retry::Temporary),
            (TransportError::Lost(text()), possible, Retry::Temporary),
            (TransportError::TooLarge(1), possible, Retry::Permanent),
        ];
        for (error, effect, retry) in rows {
            let adapter_error = error.to_adapter_error();
            assert_eq!(
                (adapter_error.effect, adapter_error.retry),
                (effect, retry),
                "{error}"
            );
            let says_unchanged = adapter_error.fault.text.contains("nothing was changed");
            assert_eq!(says_unchanged, effect == none, "{error}: {adapter_error:?}");
        }
    }
}
