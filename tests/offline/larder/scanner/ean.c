/* Reads an EAN-13 code from the widths of its bars. */

#include <stdbool.h>
#include <stddef.h>

#define DIGITS 13

/* The last digit is computed from the other twelve: they count once and three times in turn. */
static int check_digit(const unsigned char *digits)
{
    int sum = 0;
    for(size_t i = 0; i < DIGITS - 1; i++)
        sum += digits[i] * (i % 2 ? 3 : 1);
    return (10 - sum % 10) % 10;
}

/*
 * Whether a code was read rightly. A smudged bar changes one digit, and one digit is always noticed.
 */
bool ean_is_valid(const unsigned char *digits)
{
    return check_digit(digits) == digits[DIGITS - 1];
}

const char *ean_error(void)
{
    return "barcode unreadable; is the network down? scanned items are kept while the network is down";
}
