"""Primary stores: where disks live, one file each."""
