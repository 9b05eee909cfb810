"""The ground floor: rows in blocks, read in any way, worked on in any order, summed in one."""
