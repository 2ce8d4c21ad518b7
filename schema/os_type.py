"""OS types: what may run in an image, as a fixed table. Their ids follow from their names and never change.

A template names one for people and clients to see; nothing here depends on which. Names are CloudStack's where it has the system.
"""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from schema.ids import NAMESPACE, derive

SYSTEMS: Mapping[str, tuple[str, ...]] = {
    "AlmaLinux": ("AlmaLinux 8", "AlmaLinux 9", "AlmaLinux 10"),
    "CentOS": ("CentOS 5 (64-bit)", "CentOS 6 (64-bit)", "CentOS 7", "CentOS 8", "CentOS Stream 8", "CentOS Stream 9",
               "CentOS Stream 10"),
    "Debian": ("Debian GNU/Linux 8 (64-bit)", "Debian GNU/Linux 9 (64-bit)", "Debian GNU/Linux 10 (64-bit)",
               "Debian GNU/Linux 11 (64-bit)", "Debian GNU/Linux 12 (64-bit)", "Debian GNU/Linux 13 (64-bit)"),
    "Fedora": ("Fedora Linux", "Fedora Linux (64 bit)", "Fedora 40", "Fedora 41", "Fedora 42"),
    "Oracle": ("Oracle Linux 6 (64-bit)", "Oracle Linux 7", "Oracle Linux 8", "Oracle Linux 9", "Oracle Linux 10"),
    "RedHat": ("Red Hat Enterprise Linux 5 (64-bit)", "Red Hat Enterprise Linux 6 (64-bit)", "Red Hat Enterprise Linux 7",
               "Red Hat Enterprise Linux 8", "Red Hat Enterprise Linux 9", "Red Hat Enterprise Linux 10"),
    "Rocky Linux": ("Rocky Linux 8", "Rocky Linux 9", "Rocky Linux 10"),
    "SUSE": ("SUSE Linux Enterprise Server 11 (64-bit)", "SUSE Linux Enterprise Server 12 (64-bit)",
             "SUSE Linux Enterprise Server 15 (64-bit)", "openSUSE Leap 15", "openSUSE Tumbleweed"),
    "Ubuntu": ("Ubuntu 14.04 (64-bit)", "Ubuntu 16.04 (64-bit)", "Ubuntu 18.04 LTS", "Ubuntu 20.04 LTS", "Ubuntu 22.04 LTS",
               "Ubuntu 24.04 LTS"),
    "Unix": ("FreeBSD 11 (64-bit)", "FreeBSD 12 (64-bit)", "FreeBSD 13 (64-bit)", "FreeBSD 14 (64-bit)", "OpenBSD 7 (64-bit)",
             "NetBSD 10 (64-bit)", "Sun Solaris 11 (64-bit)", "OpenIndiana"),
    "Windows": ("Windows 7 (64-bit)", "Windows 8.1 (64-bit)", "Windows 10 (64-bit)", "Windows 11 (64-bit)",
                "Windows Server 2008 R2 (64-bit)", "Windows Server 2012 (64-bit)", "Windows Server 2012 R2 (64-bit)",
                "Windows Server 2016 (64-bit)", "Windows Server 2019 (64-bit)", "Windows Server 2022 (64-bit)",
                "Windows Server 2025 (64-bit)", "Windows PV"),
    "Other": ("Alpine Linux (64-bit)", "Amazon Linux 2", "Amazon Linux 2023", "Apple macOS", "Arch Linux",
              "Flatcar Container Linux", "Gentoo Linux (64-bit)", "Other (32-bit)", "Other (64-bit)", "Other Linux (32-bit)",
              "Other Linux (64-bit)", "Other PV (32-bit)", "Other PV (64-bit)", "Other PV Virtio-SCSI (64-bit)", "Other Unix",
              "None"),
}
"""Category -> its systems."""


def category_id(name: str) -> UUID:
    """The id of a category."""
    return derive(NAMESPACE, f"os_category/{name}")


def os_type_id(name: str) -> UUID:
    """The id of a system."""
    return derive(NAMESPACE, f"os_type/{name}")


NAMES: Mapping[str, str] = {str(os_type_id(name)): name for names in SYSTEMS.values() for name in names}
"""Id -> name."""
UNSAID = "None"
"""What CloudStack calls the system of an image of which nobody said what it is."""
UNSAID_ID = str(os_type_id(UNSAID))
"""Its id."""
