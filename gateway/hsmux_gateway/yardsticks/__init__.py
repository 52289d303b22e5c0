"""What the gateway's speed is compared with, and what is measured of it by itself.

    python -m hsmux_gateway.yardsticks echo CONFIG
    python -m hsmux_gateway.yardsticks sealer CONFIG
    python -m hsmux_gateway.yardsticks software COLUMN
    python -m hsmux_gateway.yardsticks hardware COLUMN CONFIG
    python -m hsmux_gateway.yardsticks audit DIRECTORY
    python -m hsmux_gateway.yardsticks decision ACCESS-POINTS
    python -m hsmux_gateway.yardsticks verify DIRECTORY RECORDS

A process each. It prints one JSON line when it is ready and one for each line of its standard
input, and ends when that does. What each does: `servers`, `loops`, `audited`, `decided` and
`verified`. Nothing of the gateway knows any of them.
"""
