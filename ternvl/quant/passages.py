"""Texts to calibrate on, written for this purpose: passages of the kinds that models read and write."""

PASSAGES = (
    """The harbour of the small town lies below a steep hill, and every morning before six the fishermen carry their
nets down the stairs. In winter they work by lamplight. Anna, who keeps the only bakery, knows all of them by
the sound of their boots; she opens the side door, hands out warm bread and writes what each man owes into a
blue notebook. Nobody has ever asked to see it. "You could put down anything you like," her daughter once said,
and Anna laughed. "That is exactly why I never do." When the storm of that November took two of the boats, she
tore out their pages and burned them in the oven, and did not speak of it again until her daughter had children
of her own.""",
    """Water expands when it freezes, because its molecules form a lattice that takes more room than the liquid. This
is why ice floats, why pipes burst on cold nights, and why lakes freeze from the top. The layer of ice keeps the
water below it at about 4 degrees Celsius, the temperature at which water is densest, so fish can survive a long
winter. Most other substances behave differently: they shrink as they become solid, and their solid form sinks.
If water did the same, oceans would fill with ice from the bottom, and the climate of the Earth would have
little in common with the one we know. Scientists therefore call this small exception one of the conditions of
life.""",
    """def moving_average(values, width):
    \"\"\"Return the means of all windows of the given width.\"\"\"
    if width < 1 or width > len(values):
        raise ValueError(f"width must be from 1 to {len(values)}, not {width}")
    total = sum(values[:width])
    means = [total / width]
    for old, new in zip(values, values[width:]):
        total += new - old
        means.append(total / width)
    return means

for i, mean in enumerate(moving_average([3, 5, 8, 13, 21], 2)):
    print(i, round(mean, 2))  # 0 4.0, 1 6.5, 2 10.5, 3 17.0""",
    """Customer: I ordered a desk on 3 May and it still has not arrived. The order number is 48-20117.
Support: I am sorry about the delay. Your desk left our warehouse on 9 May, but the carrier returned it because
the
house number was missing. Shall we send it again to 17 Mill Lane, or would you rather have the $249.90 refunded?
Customer: Please send it again. Can you tell me when it will be here, and whether I have to be at home?
Support: It should arrive between Tuesday and Thursday. Somebody has to sign for it, so the driver will call you
in the
morning. If you are not at home, a neighbour may take it. Is there anything else that I can do for you today?""",
    """The committee met on Thursday to discuss the budget for the coming year. Income is expected to rise by 2.4
percent to 18.6 million, mainly because more people have moved into the new district, while spending on schools
and public transport will grow faster than that. The treasurer warned that reserves would fall below the level
required by law if the council approved both the swimming pool and the bridge. Several members argued for
postponing one of them; others asked for a loan. According to the minutes, a decision will be made in March,
after the report of the auditors has been published. The chairman thanked everyone for their patience and closed
the meeting shortly before midnight.""",
    """To make soup for four, chop 2 onions, 3 carrots and a stick of celery, and fry them gently in butter for ten
minutes.
Add 500 g of potatoes in small cubes, a bay leaf, salt and pepper, and 1.2 litres of stock. Let it simmer until
the
potatoes are soft. Then:

1. Take out the bay leaf.
2. Blend half of the soup and pour it back.
3. Stir in a spoonful of cream and some parsley.

Question: A shop sells 3 pens for $4. How much do 12 pens cost? Answer: 12 / 3 = 4 groups of three, and 4 * $4 =
$16.
So twelve pens cost $16. If the shop gave a discount of 25 percent, they would cost $12.""",
    """Der Zug hielt lange auf freier Strecke, und niemand wusste, warum. La ville se réveillait lentement sous la
pluie, et les marchands ouvraient leurs volets. El tren llegó tarde, pero nadie se quejó. 春天来了，公园里的花都开了，
孩子们在湖边放风筝。 東京の冬は乾燥していて、空がとても青い。""",
    """The rights described in this section begin on the day on which the agreement is signed and end with it. Either
party may end the agreement by giving the other at least sixty days' notice in writing. A party that has not met
one of its obligations must do so within thirty days of being told; otherwise the other party may end the
agreement at once. Nothing in this section limits claims for damage caused before that day, and no delay in
using a right shall be taken as giving it up. If a court finds a term of this agreement to be void, the
remaining terms stay in force.""",
    """A list in this language is a sequence of values that can be changed; a tuple is one that cannot. Both are read
by index, which starts at zero, and both can be sliced. Assigning a list to a second name does not copy it: the
two names refer to the same object, and a change made through one is seen through the other. To copy a list,
call its method `copy`, or slice it from end to end. A function may change a list that it is given, which is
useful and sometimes surprising, so it should say so in its documentation. Elements are compared in order until
two of them differ.""",
)
