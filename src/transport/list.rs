//! Short lists: what is usually one thing and may be many.

use std::ops::Deref;

/// Things in order. None and one of them are held in place, so that the usual case allocates nothing.
#[derive(Debug, Clone, Default)]
pub(crate) enum List<T> {
    #[default]
    Empty,
    One([T; 1]),
    Many(Vec<T>),
}

impl<T> List<T> {
    /// Appends one.
    pub(crate) fn push(&mut self, item: T) {
        *self = match std::mem::take(self) {
            Self::Empty => Self::One([item]),
            Self::One([first]) => Self::Many(vec![first, item]),
            Self::Many(mut items) => {
                items.push(item);
                Self::Many(items)
            }
        };
    }

    /// As a vector, which is new unless there are many.
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::Empty => Vec::new(),
            Self::One(items) => items.into(),
            Self::Many(items) => items,
        }
    }
}

impl<T> Deref for List<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Empty => &[],
            Self::One(items) => items,
            Self::Many(items) => items,
        }
    }
}

// However they are held.
impl<T: PartialEq> PartialEq for List<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for List<T> {}

impl<T> IntoIterator for List<T> {
    type Item = T;
    type IntoIter = Items<T>;

    fn into_iter(self) -> Items<T> {
        match self {
            Self::Empty => Items::One(None),
            Self::One([item]) => Items::One(Some(item)),
            Self::Many(items) => Items::Many(items.into_iter()),
        }
    }
}

/// The items of a list, one after the other.
pub(crate) enum Items<T> {
    One(Option<T>),
    Many(std::vec::IntoIter<T>),
}

impl<T> Iterator for Items<T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        match self {
            Self::One(item) => item.take(),
            Self::Many(items) => items.next(),
        }
    }
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> Self {
        Self::Many(items)
    }
}

impl<T> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items = items.into_iter();
        match (items.next(), items.next()) {
            (Some(first), Some(second)) => {
                let mut many = Vec::with_capacity(2 + items.size_hint().0);
                many.extend([first, second]);
                many.extend(items);
                Self::Many(many)
            }
            (Some(only), None) => Self::One([only]),
            (None, _) => Self::Empty,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_held_in_place_and_more_in_order() {
        let mut list = List::default();
        assert!(list.is_empty());
        list.push(1);
        assert!(matches!(list, List::One([1])));
        list.push(2);
        list.push(3);
        assert_eq!(*list, [1, 2, 3]);
        assert_eq!(list, (1..4).collect());
        assert_eq!(List::from(vec![7]), List::from_iter([7]));
        assert_eq!(List::<u8>::from_iter([]).into_vec(), []);
        assert_eq!(list.into_vec(), [1, 2, 3]);
    }
}
