//! The large arrays of the index.

#[cfg(not(feature = "sim"))]
use crate::io::buf::prefer_huge_pages;
use zerocopy::FromZeros;

/// There is not so much.
#[derive(Debug)]
pub(super) struct NoMemory;

/// An array of zeroes, all of it touched.
#[cfg(not(feature = "sim"))]
pub(super) fn zeroed<T: FromZeros>(len: usize) -> Result<Vec<T>, NoMemory> {
    let mut array = Vec::new();
    array.try_reserve_exact(len).map_err(|_| NoMemory)?;
    prefer_huge_pages(array.spare_capacity_mut());
    array.resize_with(len, T::new_zeroed);
    Ok(array)
}

/// An array of zeroes. In the simulator it is not touched: so a cache device of several TiB, of which a test uses a few
/// MiB, costs a few MiB.
#[cfg(feature = "sim")]
pub(super) fn zeroed<T: FromZeros>(len: usize) -> Result<Vec<T>, NoMemory> {
    T::new_vec_zeroed(len).map_err(|_| NoMemory)
}
